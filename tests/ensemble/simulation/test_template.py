"""The site template of simulated nodes."""

from __future__ import annotations

import pytest

pytest.importorskip("balsam")

from ensemble.sites import templates
from ensemble.sites.site import TEMPLATES


def test_rendered_settings_are_balsams_and_name_the_clocks() -> None:
    import jinja2
    import yaml
    from balsam.config import Settings

    assert "simulated" in templates()
    text = jinja2.Template((TEMPLATES / "simulated" / "settings.yml").read_text()).render(nodes=4096)
    settings = Settings(**yaml.safe_load(text))
    assert settings.launcher.mpi_app_launcher.__name__ == "SimulatedRun"
    assert settings.launcher.max_concurrent_mpiruns == 4096
    assert settings.scheduler is not None
    assert settings.scheduler.allowed_queues["local"].max_nodes == 4096


def test_only_the_way_to_start_jobs_differs_from_a_local_site() -> None:
    scripts = [(TEMPLATES / name / "job-template.sh").read_text().splitlines() for name in ("local", "simulated")]
    assert [line for line in scripts[0] if not line.startswith("#")] == [
        line for line in scripts[1] if not line.startswith("#")
    ]
