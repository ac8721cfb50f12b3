"""Compiled inner loops of the focus measures: integer Laplacians, and the db6 high-pass projections of WAVS.

Luma is 1000 times Y = .299 R + .587 G + .114 B, an exact integer of at most 255000. Columns are worked on in
tiles, so that the buffers stay in a core's cache whatever the photograph's size.
"""

# mypy: allow-untyped-defs

import numpy as np

from qualitygate.metrics.compiled import compiled

COLUMNS = 1024  # of a Laplacian tile; 1024 * (20 * 255000)^2 fits into int64
PAIRS = 256  # pairs of columns of a wavelet tile
DEPTH = 16  # pairs of rows worked on at a time
REACH = 5  # pairs beyond its own that a db6 projection needs on either side


@compiled("void(u1[:, :, ::1], i8[:, ::1])")
def laplacian_sums(rgb, sums):
    """Exact sums over rgb (H, W, 3), one row of `sums` for each row of each tile of 1024 columns.

    sums (tiles * H, 3): of 6000 times Y under [1 4 1; 4 -20 4; 1 4 1] / 6, of its square, and of
    1000 * (|Lx| + |Ly|), where Lx and Ly are Y under [-1 2 -1] and its transpose. Borders are replicated.
    """
    height, columns = rgb.shape[0], rgb.shape[1]
    ring = np.empty((3, COLUMNS + 2), np.int32)
    full = np.empty(COLUMNS, np.int32)
    line = 0
    for left in range(0, columns, COLUMNS):
        width = min(COLUMNS, columns - left)
        for bottom in range(-1, height + 1):
            source = rgb[min(max(bottom, 0), height - 1)]
            below = ring[(bottom + 1) % 3]
            body = below[1 : width + 1]
            pixels = source[left : left + width]
            for j in range(width):
                body[j] = 299 * pixels[j, 0] + 587 * pixels[j, 1] + 114 * pixels[j, 2]
            j = max(left - 1, 0)
            below[0] = 299 * source[j, 0] + 587 * source[j, 1] + 114 * source[j, 2]
            j = min(left + width, columns - 1)
            below[width + 1] = 299 * source[j, 0] + 587 * source[j, 1] + 114 * source[j, 2]
            if bottom < 1:
                continue
            here = ring[bottom % 3]
            above = ring[(bottom + 2) % 3]
            modified = 0
            for j in range(width):
                up, down, side, twice = above[j + 1], below[j + 1], here[j] + here[j + 2], 2 * here[j + 1]
                corners = above[j] + above[j + 2] + below[j] + below[j + 2]
                full[j] = corners + 4 * (up + down + side) - 10 * twice
                modified += abs(twice - side) + abs(twice - up - down)
            first, second = 0, 0
            for j in range(width):
                value = np.int64(full[j])
                first += value
                second += value * value
            sums[line, 0], sums[line, 1], sums[line, 2] = first, second, modified
            line += 1


@compiled("i8(i8, i8)")
def reflected(index, size):
    """The index into a symmetrically extended signal: ... 1 0 | 0 1 2 ..."""
    index %= 2 * size
    return index if index < size else 2 * size - 1 - index


@compiled("void(u1[:, ::1], i8, i8, f8, f8[::1], f8[::1], f8[::1], f8[::1], f8[::1])")
def project_row(pixels, left, columns, base, high, back, scratch, luma, across):
    """Luma of one row in a tile, and its high-pass part along the row; both split into even and odd columns.

    pixels (W, 3); high (12,): analysis taps; back (12,): synthesis taps, the even ones backwards, then the
    odd ones; scratch (10 * PAIRS,); luma, across (2 * PAIRS,): even columns, then odd ones.
    """
    size = pixels.shape[0]
    pairs = (columns + 1) // 2
    held = pairs + 2 * REACH
    line = scratch[: 4 * PAIRS]
    start, stop = left - 2 * REACH, left - 2 * REACH + 2 * held
    begin, end = max(start, 0), min(stop, size)
    body = line[begin - start : end - start]
    inside = pixels[begin:end]
    for j in range(end - begin):
        body[j] = 299.0 * inside[j, 0] + 587.0 * inside[j, 1] + 114.0 * inside[j, 2] - base
    for j in range(start, begin):
        line[j - start] = line[reflected(j, size) - start]
    for j in range(end, stop):
        line[j - start] = line[reflected(j, size) - start]
    parity = scratch[4 * PAIRS : 8 * PAIRS]  # even columns, then odd ones, from 10 columns left of the tile
    for k in range(held):
        parity[k] = line[2 * k]
        parity[k + 2 * PAIRS] = line[2 * k + 1]
    detail = scratch[8 * PAIRS :]
    odd = 2 * PAIRS
    for k in range(pairs + REACH):
        detail[k] = (
            (high[0] * parity[k + odd + 5] + high[1] * parity[k + 5])
            + (high[2] * parity[k + odd + 4] + high[3] * parity[k + 4])
            + (high[4] * parity[k + odd + 3] + high[5] * parity[k + 3])
            + (high[6] * parity[k + odd + 2] + high[7] * parity[k + 2])
            + (high[8] * parity[k + odd + 1] + high[9] * parity[k + 1])
            + (high[10] * parity[k + odd] + high[11] * parity[k])
        )
    for k in range(pairs):
        luma[k] = parity[k + REACH]
        luma[k + PAIRS] = parity[k + odd + REACH]
    for k in range(pairs):
        d0, d1, d2 = detail[k], detail[k + 1], detail[k + 2]
        d3, d4, d5 = detail[k + 3], detail[k + 4], detail[k + 5]
        across[k] = (back[0] * d0 + back[1] * d1) + (back[2] * d2 + back[3] * d3) + (back[4] * d4 + back[5] * d5)
        across[k + PAIRS] = (
            (back[6] * d0 + back[7] * d1) + (back[8] * d2 + back[9] * d3) + (back[10] * d4 + back[11] * d5)
        )


@compiled("void(f8[::1], f8[::1], f8[::1])")
def analyse_rows(rows, high, detail):
    """One row of high-pass coefficients along the columns: rows (12 * 2 * PAIRS,) -> detail (2 * PAIRS,)."""
    step = 2 * PAIRS
    for j in range(step):
        detail[j] = (
            (high[0] * rows[j + 11 * step] + high[1] * rows[j + 10 * step])
            + (high[2] * rows[j + 9 * step] + high[3] * rows[j + 8 * step])
            + (high[4] * rows[j + 7 * step] + high[5] * rows[j + 6 * step])
            + (high[6] * rows[j + 5 * step] + high[7] * rows[j + 4 * step])
            + (high[8] * rows[j + 3 * step] + high[9] * rows[j + 2 * step])
            + (high[10] * rows[j + step] + high[11] * rows[j])
        )


@compiled("void(f8[::1], f8[::1], f8[::1], f8[::1], i8, f8[::1])")
def add_magnitudes(plain, mixed, across, back, count, lanes):
    """lanes[j] += |H| + |V| + |D| for `count` pixels of one row, all of one column parity.

    plain, mixed: 6 rows of 2 * PAIRS high-pass coefficients along the columns, of luma and of its part
    along the rows; across: the row's part along the rows; back: the 6 synthesis taps of the row's parity.
    """
    step = 2 * PAIRS
    b0, b1, b2, b3, b4, b5 = back[0], back[1], back[2], back[3], back[4], back[5]
    for j in range(count):
        down = (
            (b0 * plain[j] + b1 * plain[j + step])
            + (b2 * plain[j + 2 * step] + b3 * plain[j + 3 * step])
            + (b4 * plain[j + 4 * step] + b5 * plain[j + 5 * step])
        )
        diagonal = (
            (b0 * mixed[j] + b1 * mixed[j + step])
            + (b2 * mixed[j + 2 * step] + b3 * mixed[j + 3 * step])
            + (b4 * mixed[j + 4 * step] + b5 * mixed[j + 5 * step])
        )
        lanes[j] += abs(down - diagonal) + abs(across[j] - diagonal) + abs(diagonal)


@compiled("void(f8[::1], i8, i8)")
def move_to_front(values, start, count):
    """values[:count] = values[start : start + count], in place."""
    for j in range(count):
        values[j] = values[start + j]


@compiled("f8(u1[:, :, ::1], f8[::1], f8[::1])")
def wavelet_sum(rgb, high, back):
    """1000 * the sum of |H| + |V| + |D| over the pixels of rgb (H, W, 3), each band reconstructed alone.

    With P the projection onto a signal's db6 high-pass part and 1 - P the one onto the rest (perfect
    reconstruction), the bands are D = P along columns of (P along rows), V = P along rows - D and H = P
    along columns - D: three projections instead of a decomposition and three reconstructions. The first
    pixel's luma is taken off before: a constant has no high-pass part, so this changes nothing but
    rounding, and a constant photograph gives exactly 0.
    """
    height, width = rgb.shape[0], rgb.shape[1]
    step = 2 * PAIRS
    base = 299.0 * rgb[0, 0, 0] + 587.0 * rgb[0, 0, 1] + 114.0 * rgb[0, 0, 2]
    held = (2 * DEPTH + 2 * REACH) * step  # luma and its part along the rows: rows 2m, 2m + 1, ...
    luma, across = np.zeros(held), np.zeros(held)
    held = (DEPTH + REACH) * step  # coefficients along the columns: m, m + 1, ...
    plain, mixed = np.zeros(held), np.zeros(held)
    scratch = np.zeros(10 * PAIRS)
    lanes = np.empty(step)
    result = 0.0
    for left in range(0, width, step):
        columns = min(step, width - left)
        for j in range(step):
            lanes[j] = 0.0
        m, ready = -REACH, 0
        while 2 * m < height:
            depth = REACH if m < 0 else DEPTH
            for i in range(ready, 2 * depth + 2 * REACH):
                row = rgb[reflected(2 * m + i, height)]
                at = i * step
                project_row(row, left, columns, base, high, back, scratch, luma[at:], across[at:])
            for k in range(depth):
                at = 2 * k * step
                to = (REACH + k) * step
                analyse_rows(luma[at:], high, plain[to:])
                analyse_rows(across[at:], high, mixed[to:])
            for i in range(min(2 * depth, height - 2 * m) if m >= 0 else 0):
                at = i // 2 * step
                tap = 6 * (i % 2)
                for parity in range(2):
                    count = (columns + 1 - parity) // 2
                    offset = PAIRS * parity
                    own = across[i * step + offset :]
                    add_magnitudes(plain[at + offset :], mixed[at + offset :], own, back[tap:], count, lanes[offset:])
            # What the next rows share with these moves to the front.
            move_to_front(luma, 2 * depth * step, 2 * REACH * step)
            move_to_front(across, 2 * depth * step, 2 * REACH * step)
            move_to_front(plain, depth * step, REACH * step)
            move_to_front(mixed, depth * step, REACH * step)
            ready = 2 * REACH
            m += depth
        for j in range(step):
            result += lanes[j]
    return result
