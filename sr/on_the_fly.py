"""Training on lenses that are simulated while it runs: a pool of pairs on the device, renewed block by block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.instruments import psf_kernel
from simulate.sample import instruments
from simulate.settings import Settings, parse_settings
from simulate.shards import MANIFEST_NAME, read_manifest
from simulate.stream import Block, SampleStream, open_stream

from .normalisation import Normalisation
from .samples import Samples


class OnTheFlySettings(Settings):
    """The section `train.on_the_fly`: how many lenses there are at a time, and how fast they are replaced."""

    pool_size: int | None = Field(None, ge=1)  # pairs on the device, in whole blocks; None: as many as the stored ones
    block_size: int = Field(64, ge=1)  # pairs that are simulated and replaced together
    refresh_interval: int = Field(50, ge=1)  # steps after which the oldest block is replaced
    memory_gib: float = Field(4.0, gt=0)  # of a GPU's memory, for rendering, whatever the size of a block

    def blocks(self, stored_count: int) -> int:
        """Blocks in the pool, beside so many stored training pairs."""
        return -(-(self.pool_size or stored_count) // self.block_size)

    def refreshes(self, step: int) -> int:
        """Blocks that were replaced before `step` (1 ...)."""
        return (step - 1) // self.refresh_interval

    def distinct_lenses(self, steps: int, stored_count: int) -> int:
        """Lenses that were in the pool in the course of a training."""
        return (self.refreshes(steps) + self.blocks(stored_count)) * self.block_size


class SamplePool:
    """A `SampleSource` of blocks of a stream. With P blocks in the pool and n replaced before a step, it holds blocks
    n ... n + P - 1, block b at place b mod P: what is in it depends on the step alone, not on how it came there.
    """

    def __init__(
        self,
        stream: SampleStream,
        settings: OnTheFlySettings,
        places: int,
        normalisation: Normalisation,
        target: Literal["hr", "hr_noisy"],
    ) -> None:
        self.device = stream.device
        self._stream, self._settings, self._places = stream, settings, places
        self._normalisation, self._target = normalisation, target
        self._next = 0  # number of the block that comes next
        self._blocks: Iterator[Block] = iter(())
        count, hr_size = places * stream.size, stream.settings.hr_size
        lr_size = hr_size // stream.settings.scale
        self._samples = Samples(
            lr=torch.empty(count, 1, lr_size, lr_size, device=self.device),
            hr=torch.empty(count, 1, hr_size, hr_size, device=self.device),
            mask=torch.ones(1, dtype=torch.bool, device=self.device).expand(count, 1, hr_size, hr_size),
            noise=torch.empty(count, 1, lr_size, lr_size, device=self.device),
            index=torch.empty(count, dtype=torch.int64),
        )

    def start(self, step: int, tell: Callable[[str], None]) -> None:
        """Fill the pool with the blocks of `step`."""
        first = self._next = self._settings.refreshes(step)
        self._blocks = self._stream.blocks(first)
        for filled in range(self._places):
            tell(f"simulates {filled * self._stream.size} of {len(self._samples)} pairs")
            self._take()

    def at(self, step: int) -> Samples:
        """The pool at `step`; waits for workers if they are slower than the training."""
        while self._next < self._settings.refreshes(step) + self._places:
            self._take()
        return self._samples

    def _take(self) -> None:
        """Put the next block of the stream in the place of the oldest."""
        block = next(self._blocks)
        size, place = self._stream.size, self._next % self._places
        rows = slice(place * size, (place + 1) * size)
        amplitude = self._normalisation.amplitude(block.images["lr_noise"])
        self._samples.lr[rows] = self._normalisation.to_network_lr(block.images["lr"], amplitude)
        self._samples.noise[rows] = self._normalisation.to_network_lr(block.images["lr_noise"], amplitude)
        self._samples.hr[rows] = self._normalisation.to_network_hr(block.images[self._target], amplitude)
        index = self._samples.index.clone()  # steps that are not yet reported on keep theirs
        index[rows] = torch.tensor(block.index)
        self._samples = replace(self._samples, index=index)
        self._next += 1


NEEDED = (
    "train.data: on-the-fly goes on with a simulation, so it needs data of `pipeline simulate` of this version: "
    "simulate again, or train with data: stored"
)


def stored_simulation(folder: Path, hint: str = NEEDED) -> tuple[SimulateSettings, int]:
    """Settings and seed that a data set was simulated with. Raises `InputError` if it was not, or otherwise than now;
    `hint` says what they are needed for.

    A stream of the same settings and seed that begins after its last sample gives new lenses of the same kind.
    """
    manifest, where = read_manifest(folder), f"{folder / MANIFEST_NAME}: "
    known = isinstance(manifest.get("config"), str) and isinstance(manifest.get("seed"), int)
    if manifest.get("kind") != "simulated" or not known:
        raise InputError(f"{where}no configuration of a simulation here (kind {manifest.get('kind')!r}); {hint}")
    try:
        content = yaml.safe_load(manifest["config"])
        settings = parse_settings(SimulateSettings, content, f"{where}key 'config'").resolve()
    except yaml.YAMLError as error:
        raise InputError(f"{where}key 'config': not valid YAML: {error}; {hint}") from None
    except InputError as error:
        raise InputError(f"{error}; {hint}") from None
    for instrument in instruments(settings):
        psf_kernel(instrument.psf, instrument.pixel_scale_arcsec)  # a PSF that is gone is known before all else
    return settings, manifest["seed"]


@contextmanager
def open_pools(
    simulation: tuple[SimulateSettings, int],
    settings: OnTheFlySettings,
    stored_count: int,
    normalisation: Normalisation,
    target: Literal["hr", "hr_noisy"],
    device: torch.device,
    workers: int,
) -> Iterator[Callable[[], SamplePool]]:
    """What makes a pool for each training; all of them see the same lenses, none of which is stored."""
    simulate, seed = simulation
    memory_bytes = int(settings.memory_gib * 2**30)
    first, size = simulate.total_count, settings.block_size
    with open_stream(simulate, seed, first, size, device, workers, memory_bytes) as stream:
        yield lambda: SamplePool(stream, settings, settings.blocks(stored_count), normalisation, target)
