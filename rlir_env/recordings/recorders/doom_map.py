"""A Doom map as geometry: where a player may stand and how far it may walk before something stops it.

Reads the map lumps of a WAD file (Doom format) with NumPy. The explorer needs this because a key that is pressed
against a wall moves nothing: such an action is labelled but not visible, and no inverse dynamics model could learn it.
This is not a renderer and knows nothing of doors that open later; the explorer replans when it is stopped all the same.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

# Record layouts of the Doom map format (doomwiki.org/wiki/Linedef and its neighbours).
_THING = np.dtype([("x", "<i2"), ("y", "<i2"), ("angle", "<i2"), ("type", "<i2"), ("flags", "<i2")])
_LINEDEF = np.dtype(
    [("start", "<u2"), ("end", "<u2"), ("flags", "<u2"), ("special", "<u2"), ("tag", "<u2")]
    + [("front", "<u2"), ("back", "<u2")]
)
_SIDEDEF = np.dtype([("offsets", "<i2", 2), ("textures", "S8", 3), ("sector", "<u2")])
_SECTOR = np.dtype(
    [("floor", "<i2"), ("ceiling", "<i2"), ("textures", "S8", 2), ("light", "<i2")]
    + [("special", "<i2"), ("tag", "<i2")]
)
_VERTEX = np.dtype([("x", "<i2"), ("y", "<i2")])

_NO_SIDE = 0xFFFF
_IMPASSABLE = 0x0001
_MAX_STEP_UP = 24  # map units; a higher step stops the player
_PLAYER_HEIGHT = 56
_PLAYER_RADIUS = 16
# Thing types that stand in the way (doomwiki.org/wiki/Thing_types: columns, lamps, trees, barrels, hanging bodies).
_SOLID_TYPES = np.array(
    [*range(25, 34), *range(35, 38), *range(41, 58), 70, *range(72, 79), 85, 86, 88, 2028, 2035], dtype=np.int16
)
_THING_RADIUS = 16


def _read_lumps(wad: Path) -> list[tuple[str, bytes]]:
    data = wad.read_bytes()
    count, directory = struct.unpack("<ii", data[4:12])
    lumps = []
    for i in range(count):
        offset, size, name = struct.unpack_from("<ii8s", data, directory + 16 * i)
        lumps.append((name.rstrip(b"\0").decode("ascii"), data[offset : offset + size]))
    return lumps


@dataclass(frozen=True)
class DoomMap:
    """Walls and things of one map, in map units (a player is 56 high and 32 wide).

    Attributes:
        walls: segments that stop a player, float32 [N, 4] as x1, y1, x2, y2; a solid thing is a square of four.
        things: places where the map puts a thing that does not fill them, so a player can stand there, float32 [M, 2].
    """

    walls: np.ndarray
    things: np.ndarray

    @classmethod
    def from_wad(cls, wad: Path, name: str) -> DoomMap:
        """Read map ``name`` (``"MAP01"``, ``"E1M1"``) of a WAD file.

        Raises:
            ValueError: if the file has no such map.
        """
        return _from_wad(Path(wad), name.upper())

    def clear_distance(self, position: np.ndarray, heading: float, reach: float = 512.0) -> float:
        """Distance that a player at ``position`` [2] can walk along ``heading`` (degrees), at most ``reach``.

        Three parallel rays, one through the middle and one along either shoulder.
        """
        direction = np.array([np.cos(np.deg2rad(heading)), np.sin(np.deg2rad(heading))])
        side = np.array([-direction[1], direction[0]]) * _PLAYER_RADIUS
        origins = position + np.stack([np.zeros(2), side, -side])  # [3, 2]
        hit = _ray_hits(origins, direction, self.walls)
        return float(np.clip(hit - _PLAYER_RADIUS, 0.0, reach))


def _ray_hits(origins: np.ndarray, direction: np.ndarray, walls: np.ndarray) -> float:
    """Distance to the first of ``walls`` [N, 4] that any ray from ``origins`` [R, 2] meets, inf if none."""
    start, edge = walls[:, :2], walls[:, 2:] - walls[:, :2]  # [N, 2]
    cross = direction[0] * edge[:, 1] - direction[1] * edge[:, 0]  # [N]
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = start[None] - origins[:, None]  # [R, N, 2]
        along_ray = (offset[..., 0] * edge[:, 1] - offset[..., 1] * edge[:, 0]) / cross
        along_wall = (offset[..., 0] * direction[1] - offset[..., 1] * direction[0]) / cross
    hits = (along_ray > 0) & (along_wall >= 0) & (along_wall <= 1)
    return float(np.where(hits, along_ray, np.inf).min(initial=np.inf))


@lru_cache(maxsize=8)
def _lumps_of(wad: Path) -> tuple[tuple[str, bytes], ...]:
    return tuple(_read_lumps(wad))


def _from_wad(wad: Path, name: str) -> DoomMap:
    lumps = _lumps_of(wad)
    names = [lump_name for lump_name, _ in lumps]
    if name not in names:
        raise ValueError(f"{wad.name} has no map {name!r}")
    start = names.index(name)
    parts = dict(lumps[start + 1 : start + 11])  # a map's lumps follow its name
    things = np.frombuffer(parts["THINGS"], _THING)
    lines = np.frombuffer(parts["LINEDEFS"], _LINEDEF)
    sides = np.frombuffer(parts["SIDEDEFS"], _SIDEDEF)
    sectors = np.frombuffer(parts["SECTORS"], _SECTOR)
    vertices = np.frombuffer(parts["VERTEXES"], _VERTEX)
    stops = _stops_player(lines, sides, sectors)
    first, last = vertices[lines["start"][stops]], vertices[lines["end"][stops]]
    walls = np.stack([first["x"], first["y"], last["x"], last["y"]], axis=1).astype(np.float32)
    places = np.stack([things["x"], things["y"]], axis=1).astype(np.float32)
    is_solid = np.isin(things["type"], _SOLID_TYPES)
    return DoomMap(np.concatenate([walls, _squares(places[is_solid])]), places[~is_solid])


def _squares(centres: np.ndarray) -> np.ndarray:
    """The four sides of a solid thing around each of ``centres`` [M, 2], float32 [4 M, 4]."""
    corners = centres[:, None] + _THING_RADIUS * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float32)
    return np.concatenate([corners, np.roll(corners, -1, axis=1)], axis=2).reshape(-1, 4)


def _stops_player(lines: np.ndarray, sides: np.ndarray, sectors: np.ndarray) -> np.ndarray:
    """Which lines stop a player in at least one direction, bool [N]."""
    one_sided = lines["back"] == _NO_SIDE
    # A one-sided line has no back sector; comparing it with itself leaves the verdict to `one_sided`.
    back_side = np.where(one_sided, lines["front"], lines["back"])
    front = sectors[sides["sector"][lines["front"]]]
    back = sectors[sides["sector"][back_side]]
    floor_gap = np.abs(front["floor"].astype(int) - back["floor"])
    opening = np.minimum(front["ceiling"], back["ceiling"]).astype(int) - np.maximum(front["floor"], back["floor"])
    impassable = (lines["flags"] & _IMPASSABLE) != 0
    return one_sided | impassable | (floor_gap > _MAX_STEP_UP) | (opening < _PLAYER_HEIGHT)
