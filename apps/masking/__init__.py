"""Stage `masking`: blood vessels, cell bodies and what is no tissue, found by a 2-D U-Net, section by section."""
