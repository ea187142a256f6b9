"""The command line: parses, loads one configuration, calls one function a stage, says where the results are.

Exit codes: 0 done, 1 failed while working, 2 the input is wrong, 3 stopped by `--minutes` with work left.
"""

import os
import sys
import warnings
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulate.errors import InputError

if TYPE_CHECKING:
    import torch

    from sr.config import RunConfig

app = typer.Typer(
    help="Simulate dark-matter lenses, super-resolve them, and test honestly whether it helps.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Config = Annotated[
    Path | None, typer.Option(help="YAML file, or the name of a shipped one. Default: the run folder's config.yaml.")
]
Out = Annotated[Path, typer.Option(help="Run folder: holds everything this experiment makes.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value in place of the file's; repeatable.")
]
Seed = Annotated[int | None, typer.Option(help="In place of the configuration's seed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Go on from finished work, or replace it.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that simulate; 0: one a CPU core.")]

DEFAULT_OUT = Path("runs/quickstart")


@app.callback()
def _alone(context: typer.Context) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand != "train":
        raise InputError(f"torchrun: `train` works in several processes, `{context.invoked_subcommand}` in one")


def _load(config: Path | None, out: Path, overrides: list[str] | None, seed: int | None) -> "RunConfig":
    from sr.config import load_config

    return load_config(config, out, overrides or [], seed)


def _device(name: str) -> "torch.device":
    from sr.config import find_device

    return find_device(name)


def _stage(name: str, where: Path, settings: "RunConfig", work: Callable[..., Any], *arguments: Any) -> None:
    """Call work(run, *arguments), which fills `where` in the run folder; then keep the configuration it was given."""
    from sr.config import keep_config

    started = perf_counter()
    work(where.parent, *arguments)
    keep_config(settings, where.parent)
    typer.echo(f"{name}: {where} ({perf_counter() - started:.0f} s)")


def _simulate(
    run: Path, settings: "RunConfig", resume: bool, workers: int, device: "torch.device", verify: int = 1
) -> None:
    from simulate.generate import simulate_run

    processes = workers or os.cpu_count() or 1
    work = (simulate_run, settings.simulate, settings.seed, resume, processes, device, verify)
    _stage("simulate", run / "data", settings, *work)


def _pairs(run: Path, settings: "RunConfig", resume: bool) -> None:
    from sr.observed import pairs_run

    _stage("pairs", run / "pairs", settings, pairs_run, settings.pairs, settings.seed, resume)


def _train(
    run: Path, settings: "RunConfig", device: "torch.device", resume: bool, workers: int, minutes: float | None = None
) -> None:
    from sr.processes import joined_processes, process_rank
    from sr.training import train_run

    deadline = inf if minutes is None else monotonic() + 60 * minutes
    with joined_processes(device) as own_device:
        simulating = workers or os.cpu_count() or 1
        work = (settings.train, settings.seed, own_device, resume, simulating, deadline)
        if process_rank() == 0:
            _stage("train", run / "train", settings, train_run, *work)
        else:
            train_run(run, *work)


def _transfer(run: Path, settings: "RunConfig", device: "torch.device", resume: bool) -> None:
    from sr.transfer import transfer_run

    if not (run / "pairs" / "manifest.json").is_file():
        _pairs(run, settings, resume)
    _stage("transfer", run / "transfer", settings, transfer_run, settings.transfer, settings.seed, device, resume)


def _evaluate(run: Path, settings: "RunConfig", device: "torch.device", resume: bool) -> None:
    from sr.evaluate import evaluate_run

    _stage("evaluate", run / "evaluate", settings, evaluate_run, settings.evaluate, settings.seed, device, resume)


def _classify(run: Path, settings: "RunConfig", device: "torch.device", resume: bool) -> None:
    from sr.classify import classify_run

    _stage("classify-check", run / "classify", settings, classify_run, settings.classify, settings.seed, device, resume)


def _report(run: Path) -> None:
    from sr.report import write_report

    typer.echo(f"report: {write_report(run)}")


@app.command()
def simulate(
    config: Config = None,
    out: Out = DEFAULT_OUT,
    overrides: Override = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
    workers: Workers = 0,
    engine: Annotated[str | None, typer.Option(help="torch or lenstronomy, in place of the configuration's.")] = None,
    verify: Annotated[
        int,
        typer.Option(min=0, help="Samples of each shard to render again with lenstronomy; the shard keeps how far."),
    ] = 1,
) -> None:
    """Simulate lenses of every kind of dark matter as HR and LR pairs."""
    chosen = [*(overrides or []), *([f"simulate.engine={engine}"] if engine else [])]
    _simulate(out, _load(config, out, chosen, seed), resume, workers, _device(device), verify)


@app.command()
def pairs(
    config: Config = None, out: Out = DEFAULT_OUT, overrides: Override = None, seed: Seed = None, resume: Resume = True
) -> None:
    """Turn telescope images (FITS) into observed HR and LR pairs."""
    _pairs(out, _load(config, out, overrides, seed), resume)


@app.command()
def train(
    config: Config = None,
    out: Out = DEFAULT_OUT,
    overrides: Override = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
    workers: Workers = 0,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long, with exit code 3; the same command goes on.")
    ] = None,
) -> None:
    """Train super-resolution networks on the simulated pairs; in several processes if started by torchrun."""
    from sr.trainer import OutOfTimeError

    try:
        _train(out, _load(config, out, overrides, seed), _device(device), resume, workers, minutes)
    except OutOfTimeError as error:
        typer.echo(f"train: {error}; the same command goes on from there", err=True)
        raise typer.Exit(3) from None


@app.command()
def transfer(
    config: Config = None,
    out: Out = DEFAULT_OUT,
    overrides: Override = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Move trained networks onto observed pairs, beside an unpretrained control."""
    _transfer(out, _load(config, out, overrides, seed), _device(device), resume)


@app.command()
def evaluate(
    config: Config = None,
    out: Out = DEFAULT_OUT,
    overrides: Override = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Score every trained network and baseline on lenses that none has seen."""
    _evaluate(out, _load(config, out, overrides, seed), _device(device), resume)


@app.command("classify-check")
def classify_check(
    config: Config = None,
    out: Out = DEFAULT_OUT,
    overrides: Override = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
) -> None:
    """Does super-resolution help to tell the kinds of dark matter apart? With controls."""
    _classify(out, _load(config, out, overrides, seed), _device(device), resume)


@app.command()
def report(out: Out = DEFAULT_OUT) -> None:
    """Write one self-contained HTML page about a run."""
    _report(out)


@app.command()
def run(
    config: Config = None,
    out: Out = DEFAULT_OUT,
    overrides: Override = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
    workers: Workers = 0,
) -> None:
    """All of it: simulate, pairs, train, transfer, evaluate, classify-check, report."""
    from sr.config import check_sections

    settings, where = _load(config, out, overrides, seed), _device(device)
    check_sections(settings)
    _simulate(out, settings, resume, workers, where)
    _pairs(out, settings, resume)
    _train(out, settings, where, resume, workers)
    _transfer(out, settings, where, resume)
    _evaluate(out, settings, where, resume)
    _classify(out, settings, where, resume)
    _report(out)


@app.command("super-resolve")
def super_resolve(
    source: Annotated[Path, typer.Argument(help="FITS image to super-resolve.", metavar="IN.fits")],
    target: Annotated[Path, typer.Argument(help="FITS image to write.", metavar="OUT.fits")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder of a trained model (RUN/train/NAME, RUN/transfer/NAME) or name of a shipped one. "
            "Default: the shipped one for the image's instrument and pixel scale."
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            min=2, help="How many times to enlarge, where a model or models leave the choice; else the least."
        ),
    ] = None,
    hdu: Annotated[str | None, typer.Option(help="Name or number of the image HDU. Default: the first image.")] = None,
    device: Device = "auto",
    self_ensemble: Annotated[
        bool, typer.Option("--self-ensemble", help="Mean over the 8 symmetries of the square: 8 times slower.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on with an image that the model was not trained for.")
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Posterior draws whose scatter becomes the HDU SIGMA. Default: 16 for a flow, else 0. Networks with "
            "predict_sigma write it without draws.",
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        typer.Option(
            help="The image's PSF as a FITS file, for models that know the degradation. Default: that of the training."
        ),
    ] = None,
    psf_without_pixel: Annotated[
        bool, typer.Option("--psf-without-pixel", help="The PSF file is of the optics alone, not measured on stars.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT.fits if it exists.")] = False,
) -> None:
    """Super-resolve a FITS image of any size, keeping its header and sky coordinates."""
    from sr.super_resolve import super_resolve_fits

    done = super_resolve_fits(
        source,
        target,
        model,
        _device(device),
        hdu=hdu,
        overwrite=overwrite,
        force=force,
        scale=scale,
        self_ensemble=self_ensemble,
        draws=draws,
        psf=psf,
        psf_includes_pixel=not psf_without_pixel,
    )
    for note in done["notes"]:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"super-resolve: {target} (x{done['scale']}, model {done['model']})")


@app.command()
def fit(
    source: Annotated[Path, typer.Argument(help="FITS image of one lens, in its middle.", metavar="IN.fits")],
    target: Annotated[Path, typer.Argument(help="Folder to write fit.json, fit.fits and fit.png to.", metavar="OUT")],
    psf: Annotated[Path | None, typer.Option(help="PSF as a FITS file. Default: the image's own PSF HDU.")] = None,
    fwhm: Annotated[
        float | None, typer.Option(help="PSF as the FWHM (arcsec) of a Gaussian, without the pixel.")
    ] = None,
    instrument: Annotated[str | None, typer.Option(help="PSF as that of an instrument: its name or YAML file.")] = None,
    psf_without_pixel: Annotated[
        bool, typer.Option("--psf-without-pixel", help="The PSF file is of the optics alone, not measured on stars.")
    ] = False,
    noise: Annotated[
        float | None, typer.Option(help="1-sigma noise of a pixel. Default: a noise map in the file, or the sky.")
    ] = None,
    pixel_scale: Annotated[float | None, typer.Option(help="Arcsec a pixel. Default: from the header.")] = None,
    hdu: Annotated[str | None, typer.Option(help="Name or number of the image HDU. Default: the first image.")] = None,
    hr_instrument: Annotated[
        str | None, typer.Option(help="Whose PSF the HR model has. Default: a Gaussian of 2 HR pixels.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with priors (macro, source, lens_light).")] = None,
    overrides: Override = None,
    seed: Annotated[int, typer.Option(help="Of the lenses from which the fit starts.")] = 1,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace files in OUT.")] = False,
) -> None:
    """Fit macro-model and source to a FITS image of a lens: parameters, covariance, chi^2 and the HR model."""
    from sr.oracle.image_fit import fit_fits, load_settings
    from sr.psf_choice import PsfChoice

    done = fit_fits(
        source,
        target,
        PsfChoice(psf, fwhm, instrument, not psf_without_pixel),
        load_settings(config, overrides or []),
        seed,
        _device(device),
        hdu=hdu,
        noise_sigma=noise,
        pixel_scale=pixel_scale,
        hr_instrument=hr_instrument,
        overwrite=overwrite,
    )
    for note in done["notes"]:
        typer.echo(f"note: {note}", err=True)
    verdict = "accepted" if done["accepted"] else "NOT accepted"
    typer.echo(f"fit: {target} (chi^2 per degree of freedom {done['chi2_per_degree']:.3f}, {verdict})")


@app.command()
def models() -> None:
    """List the networks: name, size, parameters (one channel) at x2 and x4, paper."""
    import torch

    from sr.models import ARCHITECTURES, build_network, parameter_count

    line = "{:20}{:10}{:>14}{:>14}  {}".format
    typer.echo(line("network", "size", "parameters x2", "x4", "paper"))
    for name, architecture in ARCHITECTURES.items():
        for size, settings in architecture.sizes.items():
            with torch.device("meta"):  # layers without memory
                counts = [parameter_count(build_network(name, settings, scale)) for scale in (2, 4)]
            typer.echo(line(name, size, *(f"{count:,}" for count in counts), architecture.paper))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a data set in it (RUN/data, RUN/pairs).")],
) -> None:
    """Hash and read every shard of a data set again."""
    from simulate.audit import read_audits
    from simulate.shards import MANIFEST_NAME, verify_dataset

    candidates = [folder, folder / "data", folder / "pairs"]
    found = [one for one in candidates if (one / MANIFEST_NAME).is_file()]
    if not found:
        raise InputError(f"{folder}: no {MANIFEST_NAME} here, nor in data/ or pairs/ below it")
    for one in found:
        counts = ", ".join(f"{count} {split}" for split, count in verify_dataset(one).items())
        audit = read_audits(one)
        worst = f"; {audit['samples']} audited, worst {audit['hr_relative_l2']:.1e} (L2)" if audit["samples"] else ""
        typer.echo(f"{one}: good ({counts}{worst})")


@app.command()
def doctor() -> None:
    """Check the installation: packages, devices, and whether another package shadows ours."""
    from sr.doctor import examine

    checks = examine()
    for check in checks:
        typer.echo(f"{'ok ' if check.good else 'BAD'}  {check.text}")
    if not all(check.good for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: wrong input is one clear line and exit code 2; a failure shows its traceback and exits with 1."""
    # Read when torch starts: threads that spin long while they wait slow each other down on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
