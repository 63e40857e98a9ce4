"""From one structure's state to another's: what each learner can take along when a structural parameter changes.

Plain NumPy over a batch of symbols, on arrays by the path of their leaf; pure, so that a replay that meets the same
change at the same offset gets the same bits. Whatever keeps its shape and its meaning is handed on as it is; the rest
is either rebuilt from what the state holds or starts as a fresh symbol's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ._kernels import deep_galerkin, rkhs, signature
from ._parameters import DGM_TIERS, PredictorConfig, nearest_dgm_tier

_KERNEL_A, _KERNEL_B, _KERNEL_D = "model/kernels/0", "model/kernels/1", "model/kernels/3"
_CHUNK = 128  # symbols whose tensors are computed together: they fit into a core's cache
_NEGLIGIBLE = 1e-12  # of a coefficient's standard deviation


@dataclass
class MigratedArrays:
    """The new ``arrays``, and in words what was ``kept`` of the learners and what was ``lost`` or starts anew."""

    arrays: dict[str, np.ndarray]
    kept: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def migrate_arrays(
    arrays: Mapping[str, np.ndarray], old: PredictorConfig, new: PredictorConfig, pristine: Mapping[str, np.ndarray]
) -> MigratedArrays:
    """States of ``old``'s structure as states of ``new``'s.

    ``arrays`` maps a leaf's path to (symbols, ...). ``pristine`` maps every path of the new structure to the leaf of a
    symbol that has seen nothing; it decides shapes and dtypes and is what starts anew. The result's arrays may be those
    given. Paths that no learner here knows are kept where shape and dtype agree and start anew where they do not.
    """
    result = MigratedArrays({})
    num_symbols = len(next(iter(arrays.values()))) if arrays else 0
    for path, leaf in pristine.items():
        found = arrays.get(path)
        if found is not None and found.shape[1:] == leaf.shape and found.dtype == leaf.dtype:
            result.arrays[path] = found
        else:
            result.arrays[path] = _fresh(leaf, num_symbols)
            if not path.startswith((_KERNEL_A, _KERNEL_D)):
                result.lost.append(f"the state's {path}")
    for prefix, migrate in ((_KERNEL_A, _kernel_a), (_KERNEL_B, _kernel_b), (_KERNEL_D, _kernel_d)):
        if any(path.startswith(prefix) for path in pristine):
            migrate(arrays, old, new, pristine, result)
    return result


def _fresh(leaf: np.ndarray, num_symbols: int) -> np.ndarray:
    return np.broadcast_to(leaf, (num_symbols, *leaf.shape)).copy()


def _start_anew(prefix: str, pristine: Mapping[str, np.ndarray], result: MigratedArrays) -> None:
    """Everything below ``prefix`` as a fresh symbol has it."""
    for path, leaf in pristine.items():
        if path == prefix or path.startswith(prefix + "/"):
            result.arrays[path] = _fresh(leaf, len(result.arrays[path]))


def _changes(old: PredictorConfig, new: PredictorConfig, *names: str) -> str:
    """The named fields that differ, as ``name old -> new``."""
    differ = [name for name in names if getattr(old, name) != getattr(new, name)]
    return ", ".join(f"{name} {getattr(old, name)} -> {getattr(new, name)}" for name in differ)


# Kernels


def _kernel_a(
    arrays: Mapping[str, np.ndarray],
    old: PredictorConfig,
    new: PredictorConfig,
    pristine: Mapping[str, np.ndarray],
    result: MigratedArrays,
) -> None:
    """The linear part keeps every regressor that remains; the Gaussian part lives and dies with its random features."""
    before, after = old.kernel_a_lags, new.kernel_a_lags
    kept = min(before, after)
    if before == after:
        result.kept.append("kernel A's linear regression and its season")
    else:
        # intercept, lags, level, seasonal regressors
        old_places, new_places = (
            np.concatenate([np.arange(1 + kept), np.arange(1 + lags, rkhs.num_linear_features(config))])
            for lags, config in ((before, old), (after, new))
        )
        _move_regression(arrays, f"{_KERNEL_A}/linear", old_places, new_places, pristine, result)
        # A lag that was not looked at one tick ago has nothing to learn from the next one.
        _move_entries(arrays, f"{_KERNEL_A}/linear_features", old_places, new_places, result)
        change = _changes(old, new, "kernel_a_lags")
        result.kept.append(f"kernel A's linear regression on lags 1 to {kept} and its season ({change})")
        if after < before:
            result.lost.append(f"kernel A's lags {after + 1} to {before} ({change})")
    names = ("kernel_a_embedding_dim", "kernel_a_features")
    if all(getattr(old, name) == getattr(new, name) for name in names):
        result.kept.append("kernel A's regression on random features")
    else:
        _start_anew(f"{_KERNEL_A}/gaussian", pristine, result)
        _start_anew(f"{_KERNEL_A}/gaussian_features", pristine, result)
        result.lost.append(f"kernel A's regression on random features ({_changes(old, new, *names)})")


def _kernel_b(
    arrays: Mapping[str, np.ndarray],
    old: PredictorConfig,
    new: PredictorConfig,
    pristine: Mapping[str, np.ndarray],
    result: MigratedArrays,
) -> None:
    """Nothing learnt depends on the network; a symbol at the old base network goes on at the new one."""
    del arrays
    path = f"{_KERNEL_B}/tier"
    base_before, base_after = (nearest_dgm_tier(each.dgm_width_size, each.dgm_depth) for each in (old, new))
    change = _changes(old, new, "dgm_width_size", "dgm_depth")
    if base_before != base_after and path in pristine:
        tier = result.arrays[path]
        allowed = np.clip(tier, base_after, max(base_after, deep_galerkin.highest_tier_on_host(new)))
        result.arrays[path] = np.where(tier == base_before, base_after, allowed).astype(tier.dtype)
        networks = " -> ".join("x".join(map(str, DGM_TIERS[tier])) for tier in (base_before, base_after))
        change = f"{change}: network {networks}"
    result.kept.append("kernel B's drift, law and entropy" + (f" ({change})" if change else ""))


def _kernel_d(
    arrays: Mapping[str, np.ndarray],
    old: PredictorConfig,
    new: PredictorConfig,
    pristine: Mapping[str, np.ndarray],
    result: MigratedArrays,
) -> None:
    """The window keeps its newest increments, its signature is theirs; the regression keeps the words that remain.

    Words are ordered by length and a word's coordinate does not depend on the depth, but on the window it does.
    """
    window_before, window_after = old.signature_window, new.signature_window
    depth_before, depth_after = old.log_sig_depth, new.log_sig_depth
    change = _changes(old, new, "log_sig_depth", "signature_window")
    if not change:
        result.kept.append("kernel D's regression on the signature, and its window")
        return
    increments = arrays[f"{_KERNEL_D}/increments"]
    if window_before != window_after:
        kept = min(window_before, window_after) + 1
        grown = np.zeros((len(increments), window_after + 1), increments.dtype)
        grown[:, window_after + 1 - kept :] = increments[:, window_before + 1 - kept :]
        increments = result.arrays[f"{_KERNEL_D}/increments"] = grown
    if window_before != window_after or depth_after > depth_before:
        known = min(depth_before, depth_after) if window_before == window_after else 0
        for number, level in enumerate(window_signatures(increments, depth_after)):
            if number >= known:
                path = f"{_KERNEL_D}/levels/{number}"
                result.arrays[path] = level.astype(pristine[path].dtype)
    if window_before != window_after:
        for leaf in ("ridge", "features", "error_variance", "samples"):
            _start_anew(f"{_KERNEL_D}/{leaf}", pristine, result)
        result.kept.append(f"kernel D's last {kept} increments ({change})")
        result.lost.append(f"kernel D's regression on the signature ({change})")
        return
    num_before, num_after = signature.num_features(depth_before), signature.num_features(depth_after)
    words = np.arange(min(num_before, num_after))
    _move_regression(arrays, f"{_KERNEL_D}/ridge", words, words, pristine, result)
    _move_entries(arrays, f"{_KERNEL_D}/features", words, words, result)
    length = min(depth_before, depth_after)
    result.kept.append(f"kernel D's regression on words of up to {length} letters, and its window ({change})")
    if num_after < num_before:
        result.lost.append(f"kernel D's coefficients of words of {depth_after + 1} letters and more ({change})")


def window_signatures(increments: np.ndarray, depth: int) -> list[np.ndarray]:
    """:func:`signature.window_signature` of many symbols: increments (symbols, ticks) to levels (symbols, 3, ...)."""
    num_symbols, window = len(increments), increments.shape[1] - 1
    clock = signature.clock_increments(window)
    parts = [np.empty((signature.DIMENSION**level, num_symbols)) for level in range(1, depth + 1)]
    for first in range(0, num_symbols, _CHUNK):
        moves = increments[first : first + _CHUNK].T.astype(np.float64)
        levels = [np.zeros((part.shape[0], moves.shape[1])) for part in parts]
        for tick in range(window):
            previous, latest = moves[tick], moves[tick + 1]
            half = np.full_like(latest, 0.5 * clock[tick])
            levels = _multiply_exponential(levels, np.stack([half, np.zeros_like(latest), -previous]))
            levels = _multiply_exponential(levels, np.stack([half, latest / np.sqrt(window), latest]))
        for part, level in zip(parts, levels, strict=True):
            part[:, first : first + _CHUNK] = level
    shape = (signature.DIMENSION,)
    return [np.ascontiguousarray(part.T).reshape((num_symbols, *shape * (k + 1))) for k, part in enumerate(parts)]


def _multiply_exponential(levels: Sequence[np.ndarray], vector: np.ndarray) -> list[np.ndarray]:
    """As in the signature algebra, each level flat and with the symbols last: (3**level, symbols)."""
    result = []
    for level in range(1, len(levels) + 1):
        total = vector / level
        for below in range(1, level):
            step = vector / (level - below)
            total = ((total + levels[below - 1])[:, None] * step[None]).reshape(-1, vector.shape[1])
        result.append(total + levels[level - 1])
    return result


# Regressions in factored form


def _move_entries(
    arrays: Mapping[str, np.ndarray],
    path: str,
    old_places: np.ndarray,
    new_places: np.ndarray,
    result: MigratedArrays,
) -> None:
    moved = np.zeros_like(result.arrays[path])
    moved[:, new_places] = arrays[path][:, old_places]
    result.arrays[path] = moved


def _move_regression(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    old_places: np.ndarray,
    new_places: np.ndarray,
    pristine: Mapping[str, np.ndarray],
    result: MigratedArrays,
) -> None:
    """Takes the regressors at ``old_places`` to ``new_places``; further new ones stand at their prior, uncorrelated."""
    names = f"{prefix}/coefficients", f"{prefix}/root"
    coefficients, root = reduced_regression(arrays[names[0]], arrays[names[1]], old_places)
    # A learner that is not finite would not have been either in the structure that it comes from.
    usable: np.ndarray = np.logical_and(np.isfinite(coefficients).all(1), np.isfinite(root).all((1, 2)))
    moved_coefficients, moved_root = (_fresh(pristine[name], len(root)) for name in names)
    moved_coefficients[:, new_places] = coefficients
    moved_root[:, new_places[:, None], new_places[None, :]] = root
    for name, moved in zip(names, (moved_coefficients, moved_root), strict=True):
        moved[np.logical_not(usable)] = pristine[name]
        result.arrays[name] = moved


def reduced_regression(coefficients: np.ndarray, root: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""The regressions (symbols, features) and (symbols, features, features) without all regressors but ``kept``.

    To leave a regressor out is to hold its coefficient at zero, so the rest is conditioned on that: with the factor
    :math:`P = R R^\top` ordered as (dropped, kept) and :math:`R^\top = Q U`,

    .. math:: P' = U_{22}^\top U_{22}, \qquad \theta' = \theta_k - U_{12}^\top U_{11}^{-\top} \theta_d ,

    what the same samples would have given without it, since the prior is diagonal. Where dropped and kept regressors do
    not share a column of the factor there is nothing to condition, and bits are kept.
    """
    kept_coefficients = coefficients[:, kept]
    kept_root = root[:, kept[:, None], kept[None, :]]
    dropped = np.setdiff1d(np.arange(root.shape[1]), kept)
    if not dropped.size:
        return kept_coefficients, kept_root
    for first in range(0, len(root), _CHUNK):
        some = slice(first, first + _CHUNK)
        theta, factor = _conditioned(coefficients[some], root[some], kept, dropped)
        crossing = root[some][:, kept[:, None], dropped], root[some][:, dropped[:, None], kept]
        shared: np.ndarray = np.logical_or(crossing[0].any((1, 2)), crossing[1].any((1, 2)))
        kept_coefficients[some][shared] = theta[shared]
        kept_root[some][shared] = factor[shared]
    return kept_coefficients, kept_root


def _conditioned(
    coefficients: np.ndarray, root: np.ndarray, kept: np.ndarray, dropped: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kept coefficients and their factor, given that the dropped coefficients are zero."""
    num = dropped.size
    ordered = root[:, np.concatenate([dropped, kept])].astype(np.float64)
    upper = _triangle(ordered.transpose(0, 2, 1))
    theta = coefficients.astype(np.float64)
    pull = np.zeros((len(root), num))
    diagonal = upper[:, np.arange(num), np.arange(num)]
    spread = np.sqrt((upper[:, :, :num] ** 2).sum(1))
    known = np.abs(diagonal) <= _NEGLIGIBLE * spread  # follows from those before it, as far as can be told
    for i, place in enumerate(dropped):
        rest = theta[:, place] - (upper[:, :i, i] * pull[:, :i]).sum(1)
        pull[:, i] = np.where(known[:, i], 0.0, rest / np.where(known[:, i], 1.0, diagonal[:, i]))
    theta = theta[:, kept] - (upper[:, :num, num:] * pull[:, :, None]).sum(1)
    return theta, upper[:, num:, num:].transpose(0, 2, 1)


def _triangle(matrices: np.ndarray) -> np.ndarray:
    """The triangular factor of each matrix's QR decomposition."""
    return np.asarray(np.linalg.qr(matrices, mode="r"))
