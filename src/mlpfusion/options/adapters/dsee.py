"""What DSEE is told: low-rank updates, and values at few positions of a matrix; checked when it is made."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields, check_that
from mlpfusion.options.adapters.pairs import parse_pairs
from mlpfusion.options.fields import key, part

# How the positions of a matrix are chosen -> the fields that this way reads beside `sparse`.
_READS = {
    "decompose": ("omega_seed", "rank_step", "rounds", "power", "tau"),
    "magnitude": (),
    "random": ("omega_seed",),
    "gradient": ("samples",),
}
OMEGAS = tuple(_READS)


@dataclass(frozen=True)
class Support:
    """Which `sparse` entries of a matrix W, its Omega, get a value that trains.

    `omega`: `decompose` takes the largest entries of what a low-rank part leaves of W (the paper's), `magnitude` those
    of |W|, `gradient` those of the gradient of the loss on `samples` examples, `random` any. `omega_seed` draws them,
    apart from the seed of the training. The low-rank part is found in `rounds`: each adds `rank_step` directions, then
    `power` times takes out of W what was left of it above `tau` and fits the directions again. Without `rounds` there
    are as many as bring the rank to 496 / 768 of the smaller side, where the paper's 100 end for BERT.
    """

    sparse: int = key(64)
    omega: str = key("decompose")
    omega_seed: int = key(0)
    rank_step: int = key(5)
    rounds: int | None = key(None)
    power: int = key(2)
    tau: float = key(0.01)
    samples: int = key(128)

    def __post_init__(self) -> None:
        check_fields(self)
        check_that(self.omega in OMEGAS, "dsee omega", f"one of {', '.join(OMEGAS)}", self.omega)
        for name in ("sparse", "rank_step", "rounds", "power", "samples"):
            value = getattr(self, name)
            check_that(value is None or value >= 1, f"dsee {name}", "a whole number of at least 1", value)
        check_that(self.tau >= 0, "dsee tau", "at least 0", self.tau)
        for name in {name for names in _READS.values() for name in names} - {*_READS[self.omega]}:
            value, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
            check_that(value == usual, f"dsee {name}", f"left out for omega={self.omega}", value)


@dataclass(frozen=True)
class Dsee:
    """DSEE (Chen et al. 2023): y = W x + b + (`alpha` / `rank`) (B A + S) x; A, B and the few values of S train.

    `targets` is `all-linear`, or names of linear maps divided by +, or nothing for query and value. In the end the
    updates are added to the weights.
    """

    rank: int = key(16)
    alpha: float = key(32.0)
    targets: str | None = key(None)
    support: Support = part(Support)

    def __post_init__(self) -> None:
        check_fields(self)
        check_that(self.rank >= 1, "dsee rank", "a whole number of at least 1", self.rank)
        check_that(self.alpha > 0, "dsee alpha", "above 0", self.alpha)


def parse_dsee(text: str) -> Dsee:
    """`rank=16,sparse=64` as a config. Raises `InputError` for anything unknown or malformed."""
    return parse_pairs(Dsee, "dsee", text)
