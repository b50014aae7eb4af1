"""The viewer in a real browser, without a display: what is drawn where, and what a person can do."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from analysis.page import render_page
from benchmarks.viewing import READY, find_browser, open_browser, write_sparse_pyramid
from ensemble.viewing import Stores, ViewServer, open_stores
from tests.ensemble.viewing.samples import BALLS, SHAPE, place_at, write_stores

if find_browser() is None:
    pytest.skip(
        "no Chromium: install one that PATH has as chromium, chromium-browser or google-chrome (Debian: apt-get "
        "install chromium), or set ENSEMBLE_BROWSER to its program",
        allow_module_level=True,
    )
WIDTH, HEIGHT, BAR = 800, 600, 48  # the page, and the bars above the panels


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (make environment EXTRAS=cpu,test)")
    with open_browser(WIDTH, HEIGHT) as context:
        yield context


class Visit:
    """A page that shows the stores, and what went wrong on it."""

    def __init__(self, context: Any, server: ViewServer) -> None:
        self.server, self.faults, self.asked = server, list[str](), list[str]()
        self.page = context.new_page()
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        begin = time.monotonic()
        self.page.goto(server.url)
        self.page.wait_for_function(READY, timeout=60_000)
        self.page.wait_for_timeout(100)  # the frame in which the last chunk is drawn
        self.seconds = time.monotonic() - begin

    def pixels(self) -> NDArray[np.int64]:
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(np.int64)

    def bounds(self) -> tuple[list[float], list[float]]:
        """First and last corner, xyz in voxels, of the box that holds all layers."""
        found = self.page.evaluate("viewer.coordinateSpace.value.bounds")
        return found["lowerBounds"], found["upperBounds"]

    def place(self, zyx: tuple[int, int, int]) -> tuple[int, int]:
        """Pixel (x, y) of a voxel of the plane in the panel at the top left."""
        state = self.page.evaluate("viewer.state.toJSON()")
        centre, scale = state["position"], state["crossSectionScale"]
        x = WIDTH / 4 + (zyx[2] + 0.5 - centre[0]) / scale
        y = BAR + (HEIGHT - BAR) / 4 + (zyx[1] + 0.5 - centre[1]) / scale
        return round(x), round(y)


@pytest.fixture(scope="module")
def visit(context: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    folder = tmp_path_factory.mktemp("stores")
    (folder / "report.html").write_text("<h1>How it was made</h1>")
    stores = msgspec.structs.replace(write_stores(folder), report=str(folder / "report.html"))
    with ViewServer(open_stores(stores), "demo") as server:
        yield Visit(context, server)


def saturation(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    return pixels.max(axis=-1) - pixels.min(axis=-1)


def test_page_loads_without_errors_and_without_the_network(visit: Visit) -> None:
    assert visit.faults == []
    assert visit.page.title().startswith("demo")
    assert all(url.startswith((f"http://127.0.0.1:{visit.server.port}/", "blob:", "data:")) for url in visit.asked)


def test_all_layers_lie_on_each_other(visit: Visit) -> None:
    """Half a voxel between OME-Zarr and precomputed would make the common box larger than the volume."""
    assert visit.bounds() == ([0, 0, 0], list(SHAPE[::-1]))


def test_layers_lie_on_each_other_where_the_image_is_a_piece_of_a_larger_one(context: Any, tmp_path: Path) -> None:
    stores = write_stores(tmp_path)
    place_at(str(stores.image), (1600.0, 80.0, 400.0))
    with ViewServer(open_stores(stores), "piece") as server:
        piece = Visit(context, server)
        assert piece.bounds() == ([0, 0, 0], list(SHAPE[::-1]))
        piece.page.close()


def test_image_and_objects_are_drawn_where_they_are(visit: Visit) -> None:
    pixels = visit.pixels()
    colours = []
    for (_, cy, cx), _radius in BALLS.values():
        x, y = visit.place((0, cy, cx))
        inside = pixels[y - 4 : y + 5, x - 4 : x + 5]
        assert saturation(inside).min() > 40  # a colour over all of the ball's middle
        colours.append(inside.mean(axis=(0, 1)))
    assert np.abs(colours[0] - colours[1]).max() > 60
    x, y = visit.place((0, 52, 10))
    outside = pixels[y - 20 : y + 21, x - 20 : x + 21]
    assert saturation(outside).max() <= 2 and outside.std() > 15  # the image alone: grey noise


def test_meshes_and_synapses_are_drawn_in_space(visit: Visit) -> None:
    panel = visit.pixels()[BAR + (HEIGHT - BAR) // 2 + 4 : -40, WIDTH // 2 + 40 : -4]
    red, green, blue = np.moveaxis(panel, -1, 0)
    yellow = (red > 200) & (green > 180) & (blue < 100)  # the box
    coloured = (saturation(panel) > 60) & ~yellow
    assert coloured.sum() > 2000
    assert len(np.unique(panel[coloured] // 32, axis=0)) >= 2


def click_layer(visit: Visit, name: str) -> NDArray[np.int64]:
    """Click on a layer's name; returns what is then seen in the panels, the mouse being elsewhere."""
    visit.page.locator(".neuroglancer-layer-item", has_text=name).first.click()
    visit.page.mouse.move(WIDTH - 200, BAR // 4)  # above the panels
    visit.page.wait_for_function(READY, timeout=60_000)
    visit.page.wait_for_timeout(300)
    return visit.pixels()[BAR + 4 :]


@pytest.mark.parametrize("name", ["image", "segmentation", "meshes", "skeletons", "synapses", "labels"])
def test_every_layer_can_be_shown_and_hidden_by_a_click_on_its_name(visit: Visit, name: str) -> None:
    if name == "skeletons":
        click_layer(visit, "meshes")  # inside of which they are
    shown = f"viewer.layerManager.getLayerByName('{name}').visible"
    was = visit.page.evaluate(shown)
    seen = [click_layer(visit, name) for _ in range(3)]
    assert visit.page.evaluate(shown) is not was
    changed, same = (np.abs(other - seen[0]).max(axis=-1) > 20 for other in seen[1:])
    assert changed.sum() > 20 > same.sum()
    click_layer(visit, name)
    if name == "skeletons":
        click_layer(visit, "meshes")
    assert visit.page.evaluate(shown) is was and visit.faults == []


def test_the_report_is_a_click_away(visit: Visit, context: Any) -> None:
    assert visit.server.report_url is not None
    page = context.new_page()
    assert page.goto(visit.server.report_url).status == 200 and page.inner_text("h1") == "How it was made"
    page.close()


def test_a_long_command_of_a_page_leaves_room_for_what_it_shows(context: Any) -> None:
    commands = (("python " + "long/" * 40, "all neurons"),)
    content = {"title": "demo", "honest": (), "provenance": {}, "commands": commands}
    page = context.new_page()
    page.set_content(render_page("page.html.j2", content=content, headline=""))
    meaning = page.get_by_text("all neurons").bounding_box()
    assert meaning["width"] > 120 and meaning["x"] + meaning["width"] <= WIDTH
    page.close()


def test_object_is_let_go_by_a_double_click_and_others_stay(visit: Visit) -> None:
    small, large = sorted(BALLS)
    (_, cy, cx), _ = BALLS[small]
    visit.page.mouse.move(*visit.place((0, cy, cx)))
    visit.page.wait_for_timeout(200)  # for the voxel under the mouse to be read back
    visit.page.mouse.dblclick(*visit.place((0, cy, cx)))
    segments = "viewer.state.toJSON().layers[1].segments"
    visit.page.wait_for_function(f"{segments}.includes('!{small}')", timeout=10_000)  # in the list still, not shown
    assert visit.page.evaluate(segments) == [str(large), f"!{small}"]


def test_synapses_can_be_narrowed_to_those_of_selected_objects(visit: Visit) -> None:
    layer = "viewer.layerManager.getLayerByName('synapses').layer"
    with visit.page.expect_response(lambda response: f"/synapses/pre/{max(BALLS)}" in response.url) as answer:
        visit.page.evaluate(f"{layer}.linkedSegmentationLayers.get('pre').showMatches.value = true")
    assert answer.value.status == 200
    assert visit.faults == []


def test_link_with_a_wrong_token_shows_nothing(visit: Visit, context: Any) -> None:
    page = context.new_page()
    response = page.goto(visit.server.url.replace(visit.server.token, "x" * 32))
    assert response.status == 403 and page.inner_text("body") == "Forbidden"
    page.close()


def test_large_volume_opens_with_its_coarse_levels(context: Any, tmp_path: Path) -> None:
    """2^48 voxels: what is loaded is what can be seen."""
    write_sparse_pyramid(tmp_path / "big.zarr", 2**16, written=1)
    with ViewServer(open_stores(Stores(image=str(tmp_path / "big.zarr"))), "big") as server:
        visit = Visit(context, server)
        chunks = [url for url in visit.asked if "/c/" in url]
        assert 0 < len(chunks) < 200
        x, y = WIDTH // 4, BAR + (HEIGHT - BAR) // 4
        middle = visit.pixels()[y + 5 : y + 60, x + 5 : x + 60]
        assert middle.std() > 5 and saturation(middle).max() <= 2
        visit.page.close()
