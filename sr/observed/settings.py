"""Settings of the observed pairs: where the images come from and how their low-resolution partner is made."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from simulate.settings import Settings

Plane = Annotated[int, Field(ge=0)]


class PsfSettings(Settings):
    """Either a Gaussian (`fwhm_arcsec`, of the optics alone) or an image from a FITS file."""

    fwhm_arcsec: PositiveFloat | None = None
    file: Path | None = None
    """None: the file of the image itself."""
    hdu: str | int | None = None
    """None: `PSF`, or the first image of another file."""
    plane: Plane | None = None
    """Plane of a cube; None averages them."""
    pixel_scale_arcsec: PositiveFloat | None = None
    """None: PIXSCALE in the PSF's header, else the image's pixel scale divided by PSFSUP."""
    includes_pixel: bool = True
    """Whether the PSF image contains the response of the detector's pixel, as one measured on stars does."""

    @model_validator(mode="after")
    def _one_kind(self) -> "PsfSettings":
        image = (self.file, self.hdu, self.plane, self.pixel_scale_arcsec)
        if self.fwhm_arcsec is not None and any(key is not None for key in image):
            raise ValueError("give either fwhm_arcsec (a Gaussian) or the keys of a PSF image, not both")
        return self


class HubbleDeepFieldSettings(Settings):
    """Galaxies cut out of the Hubble eXtreme Deep Field picture that scikit-image ships; needs no data."""

    kind: Literal["hubble_deep_field"] = "hubble_deep_field"
    pixel_scale_arcsec: PositiveFloat = 0.14
    """Nominal: the picture shows 2.3 arcmin in 1000 pixels."""
    psf_fwhm_arcsec: PositiveFloat = 0.2
    detection_sigma: PositiveFloat = 5.0


class FitsSettings(Settings):
    """Real high-resolution images, to be degraded: one FITS file, or every one of a folder."""

    kind: Literal["fits"]
    path: Path
    pattern: str = "*.fits"
    """Which files of a folder."""
    hdu: str | int | None = None
    """None: `SCI`, or else the first image; a cube holds one image a plane."""
    psf: PsfSettings = PsfSettings()
    pixel_scale_arcsec: PositiveFloat | None = None
    """None: PIXSCALE, the WCS, or `manifest.csv` beside the file or one folder up."""
    object_name: str | None = None
    """None: from `manifest.csv`, OBJECT or the file's name. All bands of one object should share it."""
    instrument: str | None = None
    unit: str | None = None


class InstrumentSettings(Settings):
    """One side of a pair that two instruments observed."""

    hdu: str | int
    plane: Plane | None = None
    noise_hdu: str | int | None = None
    """1-sigma map; pixels at its sentinels are masked. None: the sky is measured."""
    psf: PsfSettings
    pixel_scale_arcsec: PositiveFloat | None = None
    instrument: str


class LowInstrumentSettings(InstrumentSettings):
    """The less sharp side."""

    block: PositiveInt = 1
    """Sum blocks of so many pixels: brings a resampled band back to near its native pixels."""


class TwoInstrumentSettings(Settings):
    """The same sky seen sharply and less sharply, in one FITS file or in every one of a folder."""

    kind: Literal["two_instrument"]
    path: Path
    pattern: str = "*.fits"
    hr: InstrumentSettings
    lr: LowInstrumentSettings
    shift_limit_lr_pixels: PositiveFloat = 3.0
    """Fields that lie farther than this from where their headers say are left out."""
    offset_limit_lr_pixels: PositiveFloat = 0.25
    """Tiles that still lie farther than this beside their partner after registration are left out."""
    lowest_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Tiles whose partners correlate less (empty sky, other colours) are left out: their offset cannot be checked."""
    unit: str | None = None


Source = Annotated[HubbleDeepFieldSettings | FitsSettings | TwoInstrumentSettings, Field(discriminator="kind")]


class PairsSettings(Settings):
    """Observed pairs. All images of a data set end at one pixel scale and size."""

    sources: tuple[Source, ...] = Field(default=(HubbleDeepFieldSettings(),), min_length=1)
    scale: Annotated[int, Field(ge=2, le=8)] = 2
    hr_size: PositiveInt = 48
    hr_pixel_scale_arcsec: PositiveFloat | None = None
    """None: that of the first image, or LR pixels / scale for two instruments."""
    lr_psf: PsfSettings | None = None
    """PSF of the degraded images; None: a Gaussian of FWHM 1.6 LR pixels, as Euclid VIS has."""
    lr_instrument: str = "degraded"
    lr_noise_factor: PositiveFloat = 1.0
    """Background noise of the degraded images, in units of what the HR noise of an LR pixel's area adds up to: 1 is as
    deep as HR, larger is shallower."""
    lr_noise_sigma: PositiveFloat | None = None
    """Background noise per LR pixel in the images' own unit, in place of `lr_noise_factor`."""
    min_real_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Images with a smaller share of real pixels are left out; the others are padded and masked."""

    @model_validator(mode="after")
    def _consistent(self) -> "PairsSettings":
        if self.hr_size % self.scale or self.hr_size < 4 * self.scale:
            raise ValueError(f"hr_size {self.hr_size} should be a multiple of scale {self.scale}, at least 4 times it")
        two = [source.kind == "two_instrument" for source in self.sources]
        if any(two) != all(two):
            raise ValueError(
                "sources: pairs seen by two instruments and degraded images do not belong in one data set; "
                "make two runs"
            )
        return self
