"""What every stage shares: errors, parameters, the stage contract, boxes, volumes and progress."""
