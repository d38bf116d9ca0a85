"""Inner loops of docking for the CPU, compiled by Numba: one pass where torch makes many.

Each does what the lines of torch beside its caller do. Those lines stay, for gradients and other
devices; tests hold the two together. Compiled once on a machine, in a few seconds (`ahead`), and
kept beside this file or in the user's cache (`NUMBA_CACHE_DIR` moves it).

Arrays are C-contiguous, float32 or int64; `out_*` are filled. Shapes: n nodes, K neighbours of
each, B poses, N ligand atoms, A receptor atoms, P pairs of ligand atoms. Å, kcal/mol.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

__all__ = [
    "add_senders",
    "compile_all",
    "interpolate",
    "kept",
    "message_sums",
    "move",
    "nearest",
    "pull",
    "receptor_sums",
    "within",
]

Function = Any  # as written, or compiled
Array = Any  # numpy's, to the compiler; annotations are not for it

Terms = tuple[float, float, float]  # weights of the two Gaussians and the repulsion

_F = np.float32  # a bare number would make a sum of float32 double
_ZERO = _F(0)


def _compiled(function: Function) -> Function:
    settings: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
    try:
        made: Function = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # no folder that can be written: compiled in each process
        made = numba.njit(**settings)(function)
    return made


@_compiled
def _squares(x: float, y: float, z: float, others: Array, out_square: Array) -> None:
    """Squares of the distances to others (3, A); a loop of its own does several at once."""
    for a in range(len(out_square)):
        d_x, d_y, d_z = x - others[0, a], y - others[1, a], z - others[2, a]
        out_square[a] = d_x * d_x + d_y * d_y + d_z * d_z


# --- messages ------------------------------------------------------------------------------------


@_compiled
def nearest(receivers: Array, senders: Array, out_index: Array) -> None:
    """`layers.nearest` of receivers (n, 3) among senders (3, n'): indices (n, K), K <= n'."""
    kept, every = out_index.shape[1], senders.shape[1]
    square, far = np.empty(kept, np.float32), np.empty(every, np.float32)
    for i in range(len(receivers)):
        _squares(receivers[i, 0], receivers[i, 1], receivers[i, 2], senders, far)
        square[:] = np.inf
        out_index[i] = 0  # stays where distances are no numbers
        last, bound = 0, square[0]  # the farthest of those kept
        for s in range(every):
            if far[s] < bound:
                square[last], out_index[i, last] = far[s], s
                last, bound = 0, square[0]
                for k in range(1, kept):
                    if square[k] > bound:
                        last, bound = k, square[k]


@_compiled
def add_senders(out_hidden: Array, receivers: Array, scalars: Array, sender: Array) -> None:
    """To hidden (n, K, H) come receivers (n, H) and the first H scalars (n', *) of the senders."""
    count, neighbours, width = out_hidden.shape
    for i in range(count):
        for j in range(neighbours):
            s = sender[i, j]
            for c in range(width):
                out_hidden[i, j, c] += receivers[i, c] + scalars[s, c]


@cache
def message_sums(width: int, scalar: int, vector: int) -> Function:
    """The sums of `layers.Message` of one size, which the compiler wants to know.

    Of the kernel: weights (n, K, *) and their bias (*), not added yet; scalars (n', *) and vectors
    (n', 3, C') of the senders (n, K); unit vectors (n, K, 3); sums (n, C + C') and (n, 3, C').
    """

    def sums(
        weights: Array, bias: Array, scalars: Array, vectors: Array, sender: Array, unit: Array,
        out_scalars: Array, out_vectors: Array,
    ) -> None:  # fmt: skip
        count, neighbours = sender.shape
        scale = np.float32(1 / math.sqrt(neighbours))
        total = np.empty(scalar + 4 * vector, np.float32)  # in registers, or near them
        for i in range(count):
            total[:] = 0
            for j in range(neighbours):
                s = sender[i, j]
                x, y, z = unit[i, j, 0], unit[i, j, 1], unit[i, j, 2]
                for c in range(scalar):
                    total[c] += (weights[i, j, c] + bias[c]) * scalars[s, width + c]
                for c in range(scalar, scalar + vector):
                    v_x, v_y, v_z = (
                        vectors[s, 0, c - scalar], vectors[s, 1, c - scalar],
                        vectors[s, 2, c - scalar],
                    )  # fmt: skip
                    b, d, e = c + vector, c + 2 * vector, c + 3 * vector
                    total[c] += (weights[i, j, c] + bias[c]) * (v_x * x + v_y * y + v_z * z)
                    along = (weights[i, j, b] + bias[b]) * scalars[s, width + c]
                    carried = weights[i, j, d] + bias[d]
                    total[b] += carried * v_x + along * x
                    total[d] += carried * v_y + along * y
                    total[e] += carried * v_z + along * z
            for c in range(scalar + vector):
                out_scalars[i, c] = scale * total[c]
            for axis in range(3):
                for c in range(vector):
                    out_vectors[i, axis, c] = scale * total[scalar + (1 + axis) * vector + c]

    return _compiled(sums)


# --- energies ------------------------------------------------------------------------------------


@_compiled
def _cubic(t: float, weight: Array, slope: Array) -> None:
    """`maps._cubic` of one fraction."""
    u = 1 - t
    weight[0], weight[1] = -0.5 * t * u * u, 1 + t * t * (1.5 * t - 2.5)
    weight[2], weight[3] = 1 + u * u * (1.5 * u - 2.5), -0.5 * u * t * t
    slope[0], slope[1] = u * (1.5 * t - 0.5), t * (4.5 * t - 5)
    slope[2], slope[3] = -u * (4.5 * u - 5), -t * (1.5 * u - 0.5)


@_compiled
def interpolate(
    coords: Array, row: Array, values: Array, origin: Array, scale: float, shape: Array,
    out_energy: Array, out_gradient: Array,
) -> None:  # fmt: skip
    """`maps.MapField` of coords (B, N, 3): row (N,) is where an atom's map begins in the values,
    shape (3,) its nodes."""
    poses, atoms, _ = coords.shape
    weight, slope = np.empty((3, 4), np.float32), np.empty((3, 4), np.float32)
    free, node = np.empty(3, np.float32), np.empty(3, np.int64)
    for b in range(poses):
        for n in range(atoms):
            for axis in range(3):
                place = (coords[b, n, axis] - origin[axis]) * np.float32(scale)
                # in this order, so that what is not a number stays within the maps
                held = place if place > 1 else np.float32(1)
                held = held if held < shape[axis] - 2 else np.float32(shape[axis] - 2)
                node[axis] = min(int(held), shape[axis] - 3)
                free[axis] = scale if held == place else 0.0
                _cubic(held - node[axis], weight[axis], slope[axis])
            value = _ZERO * (coords[b, n, 0] + coords[b, n, 1] + coords[b, n, 2])  # keeps a nan
            by_x = by_y = by_z = _ZERO
            for i in range(4):
                plane = plane_y = plane_z = _ZERO
                for j in range(4):
                    at = ((node[0] + i - 1) * shape[1] + node[1] + j - 1) * shape[2]
                    at += row[n] + node[2] - 1
                    line = line_z = _ZERO
                    for k in range(4):
                        line += weight[2, k] * values[at + k]
                        line_z += slope[2, k] * values[at + k]
                    plane += weight[1, j] * line
                    plane_y += slope[1, j] * line
                    plane_z += weight[1, j] * line_z
                value += weight[0, i] * plane
                by_x += slope[0, i] * plane
                by_y += weight[0, i] * plane_y
                by_z += weight[0, i] * plane_z
            out_energy[b, n] = value
            out_gradient[b, n, 0] = free[0] * by_x
            out_gradient[b, n, 1] = free[1] * by_y
            out_gradient[b, n, 2] = free[2] * by_z


@_compiled
def _pair(d: Any, terms: Terms, hydrophobic: Any, hydrogen: Any) -> tuple[Any, Any]:
    """`physics.pair_energy` of one pair."""
    from_3 = d - _F(3)
    first = _F(terms[0]) * math.exp(_F(-4) * d * d)
    second = _F(terms[1]) * math.exp(_F(-0.25) * from_3 * from_3)
    energy, slope = first + second, _F(-8) * d * first - _F(0.5) * from_3 * second
    if d < 0:
        energy += _F(terms[2]) * d * d
        slope += _F(2 * terms[2]) * d
        energy += hydrogen * min(d / _F(-0.7), _F(1))
        slope -= hydrogen / _F(0.7) if d > _F(-0.7) else _F(0)
    if d < _F(1.5):
        energy += hydrophobic * min(_F(1.5) - d, _F(1))
        slope -= hydrophobic if d > _F(0.5) else _F(0)
    return energy, slope


@_compiled
def receptor_sums(
    coords: Array, others: Array, radii: Array, hydrophobic: Array, hydrogen: Array,
    terms: Terms, cutoff: float, out_energy: Array, out_gradient: Array,
) -> None:  # fmt: skip
    """`physics.PairField` of coords (B, N, 3) beside others (3, A): tables are (N, A)."""
    poses, atoms, _ = coords.shape
    reach, square = _F(cutoff * cutoff), np.empty(others.shape[1], np.float32)
    for b in range(poses):
        for n in range(atoms):
            x, y, z = coords[b, n, 0], coords[b, n, 1], coords[b, n, 2]
            total = 0.0 * (x + y + z)  # keeps a nan
            by_x = by_y = by_z = 0.0
            _squares(x, y, z, others, square)
            for a in range(len(square)):
                if square[a] < reach:
                    r = math.sqrt(max(square[a], _F(1e-6)))
                    energy, slope = _pair(r - radii[n, a], terms, hydrophobic[n, a], hydrogen[n, a])
                    total += energy
                    by_x += slope / r * (x - others[0, a])
                    by_y += slope / r * (y - others[1, a])
                    by_z += slope / r * (z - others[2, a])
            out_energy[b, n] = total
            out_gradient[b, n, 0], out_gradient[b, n, 1] = by_x, by_y
            out_gradient[b, n, 2] = by_z


@_compiled
def within(
    coords: Array, pairs: Array, radii: Array, hydrophobic: Array, hydrogen: Array, terms: Terms,
    cutoff: float, cap: float, out_energy: Array, out_gradient: Array,
) -> None:  # fmt: skip
    """`Vina._within` of coords (B, N, 3): pairs (P, 2), tables (P,); energy (B,)."""
    out_gradient[:] = 0
    reach, ceiling = _F(cutoff), _F(cap)
    for b in range(len(coords)):
        total = 0.0
        for p in range(len(pairs)):
            i, j = pairs[p]
            d_x, d_y, d_z = (
                coords[b, i, 0] - coords[b, j, 0], coords[b, i, 1] - coords[b, j, 1],
                coords[b, i, 2] - coords[b, j, 2],
            )  # fmt: skip
            r = math.sqrt(max(d_x * d_x + d_y * d_y + d_z * d_z, _F(1e-6)))
            if r < reach:
                energy, slope = _pair(r - radii[p], terms, hydrophobic[p], hydrogen[p])
                if energy > 0:
                    bent = ceiling / (energy + ceiling)
                    energy, slope = energy * bent, slope * bent * bent
                total += energy
                for axis, d in enumerate((d_x, d_y, d_z)):
                    out_gradient[b, i, axis] += slope / r * d
                    out_gradient[b, j, axis] -= slope / r * d
        out_energy[b] = total


# --- moves ---------------------------------------------------------------------------------------


@_compiled
def _length(vector: Array) -> float:
    return math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])


@_compiled
def _centre(coords: Array, pose: int, out_centre: Array) -> None:
    for i in range(3):
        out_centre[i] = 0
        for n in range(coords.shape[1]):
            out_centre[i] += coords[pose, n, i]
        out_centre[i] /= coords.shape[1]


@_compiled
def _bond(coords: Array, pose: int, start: int, end: int, out_end: Array, out_axis: Array) -> None:
    for i in range(3):
        out_end[i] = coords[pose, end, i]
        out_axis[i] = out_end[i] - coords[pose, start, i]
    length = max(_length(out_axis), 1e-12)
    for i in range(3):
        out_axis[i] /= length


@_compiled
def move(
    coords: Array, step: Array, bonds: Array, piece: Array, parent: Array, order: Array,
    out_coords: Array,
) -> None:  # fmt: skip
    """`search.Kinematics` of coords (B, N, 3) by steps (B, 6 + M): bonds (M, 2), the innermost
    piece of each atom (N,), the parent of each piece (1 + M,), and an order of the pieces in which
    parents come first. Piece 0 is the ligand, p turns about bond p - 1."""
    turn, shift = np.empty((len(parent), 3, 3)), np.empty((len(parent), 3))
    own, rest, hinge, axis = np.empty((3, 3)), np.empty(3), np.empty(3), np.empty(3)
    for b in range(len(coords)):
        for p in order:
            if p == 0:
                _centre(coords, b, hinge)
                for i in range(3):
                    axis[i] = step[b, 3 + i]
                angle = _length(axis)
                for i in range(3):
                    axis[i] /= max(angle, 1e-12)
            else:
                _bond(coords, b, bonds[p - 1, 0], bonds[p - 1, 1], hinge, axis)
                angle = step[b, 5 + p]
            sine, cosine = math.sin(angle), math.cos(angle)
            for i in range(3):
                for j in range(3):
                    own[i, j] = (1 - cosine) * axis[i] * axis[j]
                own[i, i] += cosine
                own[i, (i + 2) % 3] += sine * axis[(i + 1) % 3]
                own[i, (i + 1) % 3] -= sine * axis[(i + 2) % 3]
            for i in range(3):
                rest[i] = hinge[i] + (step[b, i] if p == 0 else 0.0)
                for j in range(3):
                    rest[i] -= own[i, j] * hinge[j]
            q = parent[p]
            for i in range(3):
                shift[p, i] = rest[i] if p == 0 else shift[q, i]
                for j in range(3):
                    turn[p, i, j] = own[i, j] if p == 0 else 0.0
                if p > 0:
                    for k in range(3):
                        shift[p, i] += turn[q, i, k] * rest[k]
                        for j in range(3):
                            turn[p, i, j] += turn[q, i, k] * own[k, j]
        for n in range(coords.shape[1]):
            p = piece[n]
            for i in range(3):
                moved = shift[p, i]
                for j in range(3):
                    moved += turn[p, i, j] * coords[b, n, j]
                out_coords[b, n, i] = moved


@_compiled
def pull(
    coords: Array, gradient: Array, bonds: Array, piece: Array, parent: Array, order: Array,
    out_step: Array,
) -> None:  # fmt: skip
    """`search.Kinematics.pull` of a gradient (B, N, 3), to (B, 6 + M)."""
    pieces = len(parent)
    force, torque = np.empty((pieces, 3)), np.empty((pieces, 3))
    centre, hinge, axis = np.empty(3), np.empty(3), np.empty(3)
    for b in range(len(coords)):
        for p in range(pieces):
            for i in range(3):
                force[p, i] = torque[p, i] = 0
        _centre(coords, b, centre)
        for n in range(coords.shape[1]):
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                force[piece[n], i] += gradient[b, n, i]
                torque[piece[n], i] += (coords[b, n, j] - centre[j]) * gradient[b, n, k]
                torque[piece[n], i] -= (coords[b, n, k] - centre[k]) * gradient[b, n, j]
        for number in range(pieces):
            p = order[pieces - 1 - number]  # children first
            if p == 0:
                for i in range(3):
                    out_step[b, i], out_step[b, 3 + i] = force[0, i], torque[0, i]
                continue
            _bond(coords, b, bonds[p - 1, 0], bonds[p - 1, 1], hinge, axis)
            along = 0.0
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                bent = (hinge[j] - centre[j]) * force[p, k] - (hinge[k] - centre[k]) * force[p, j]
                along += axis[i] * (torque[p, i] - bent)
                force[parent[p], i] += force[p, i]
                torque[parent[p], i] += torque[p, i]
            out_step[b, 5 + p] = along


# --- ahead of time -------------------------------------------------------------------------------

SIZE = (32, 48, 16)  # of `message_sums` in the networks that ship


def compile_all() -> None:
    """Compiles what a docking calls, in the order in which it does, and prints each name after."""
    terms, real = numba.types.UniTuple(numba.float64, 3), numba.float64
    f_1, f_2, f_3 = numba.float32[::1], numba.float32[:, ::1], numba.float32[:, :, ::1]
    i_1, i_2 = numba.int64[::1], numba.int64[:, ::1]
    tables = f_2, f_2, f_2
    signatures = {
        nearest: (f_2, f_2, i_2),
        add_senders: (f_3, f_2, f_2, i_2),
        message_sums(*SIZE): (f_3, f_1, f_2, f_3, i_2, f_3, f_2, f_3),
        move: (f_3, f_2, i_2, i_1, i_1, i_1, f_3),
        interpolate: (f_3, i_1, f_1, f_1, real, i_1, f_2, f_3),
        within: (f_3, i_2, f_1, f_1, f_1, terms, real, real, f_1, f_3),
        pull: (f_3, f_3, i_2, i_1, i_1, i_1, f_2),
        receptor_sums: (f_3, f_2, *tables, terms, real, f_2, f_3),
    }
    for kernel, signature in signatures.items():
        kernel.compile(signature)
        print(kernel.__name__, flush=True)


def kept() -> bool:
    """Whether that need not be done: it was, since this file changed, or nothing can be kept."""
    stats = getattr(receptor_sums, "stats", None)  # none where Numba is switched off
    if stats is None or stats.cache_path is None:
        return True
    found = Path(stats.cache_path).glob(f"{Path(__file__).stem}.{receptor_sums.__name__}-*")
    return any(f.stat().st_mtime > Path(__file__).stat().st_mtime for f in found)
