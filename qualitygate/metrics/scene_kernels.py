"""Compiled inner loops of BRISQUE and NIQE: luma, half-size image, normalised coefficients and their moments.

Each works on a strip of rows or a tile of columns that stays in a core's cache. Inner loops run along columns
in buffers of a fixed width, so that LLVM sees that nothing overlaps and uses vectors.
"""

# mypy: allow-untyped-defs

import numpy as np

from qualitygate.metrics.compiled import compiled

TILE = 96  # columns worked on at a time; also the side of NIQE's blocks
RADIUS = 3  # of the 7x7 Gaussian window
STRIDE = 104  # row length of the tile buffers: TILE + 2 * RADIUS, rounded up to 64 bytes

# Moments kept for the coefficients themselves (0) and their products with four neighbours (1 to 4).
SERIES = 5
MOMENTS = 5  # of each: sum |p|, sum p^2, sum p^2 where p < 0, count p < 0, count p > 0

# MATLAB's rgb2gray: the first row of the inverse of its YIQ matrix, as the LIVE releases call it.
RED, GREEN, BLUE = 0.2989360212937755, 0.5870430744511212, 0.1140209042551033


@compiled("void(u1[:, :, ::1], u1[:, ::1])")
def live_luma(rgb, luma):
    """rgb (H, W, 3) -> luma (H, W), rounded half up as MATLAB rounds."""
    for i in range(rgb.shape[0]):
        row = rgb[i]
        out = luma[i]
        for j in range(row.shape[0]):
            out[j] = np.uint8(np.int32(RED * row[j, 0] + GREEN * row[j, 1] + BLUE * row[j, 2] + 0.5))


@compiled("void(u1[:, ::1], i8[:, ::1], i8, i4[:, ::1])")
def halve(luma, rows, width, half):
    """MATLAB's imresize(luma, 0.5), bicubic and antialiased, exactly: half = 65536 * the result.

    luma (H, at least W); rows (ceil(H/2), 8): the source rows of each output row, reflected at the borders;
    half (ceil(H/2), ceil(W/2)). The eight weights are multiples of 1/256, so that integers hold every sum.
    """
    line = np.empty(width + 8, np.int32)
    body = line[3 : 3 + width]
    for o in range(half.shape[0]):
        for pair in range(4):
            weight = (-3, -9, 29, 111)[pair]
            above = luma[rows[o, pair], :width]
            below = luma[rows[o, 7 - pair], :width]
            if pair == 0:
                for j in range(width):
                    body[j] = weight * (np.int32(above[j]) + np.int32(below[j]))
            else:
                for j in range(width):
                    body[j] += weight * (np.int32(above[j]) + np.int32(below[j]))
        period = 2 * width
        for j in range(3):
            k = (period - 1 - j) % period
            line[2 - j] = body[k if k < width else period - 1 - k]
        for j in range(5):
            k = (width + j) % period
            line[3 + width + j] = body[k if k < width else period - 1 - k]
        out = half[o]
        for j in range(out.shape[0]):
            k = 2 * j
            out[j] = (
                111 * (line[k + 3] + line[k + 4])
                + 29 * (line[k + 2] + line[k + 5])
                - 9 * (line[k + 1] + line[k + 6])
                - 3 * (line[k] + line[k + 7])
            )


@compiled("void(f8[:, ::1], f8[::1], f8, f8[:, :])")
def normalise(padded, window, bias, out):
    """Mean-subtracted contrast-normalised coefficients, (x - mu) / (sigma + 1): Mittal 2012, eq. 1.

    padded (rows + 6, columns + 6): the image with its border; window (4,): half of the 1-D Gaussian, centre
    first; out (rows, columns). `bias` times x is added to x - mu: it decides the sign where a window is flat.
    """
    rows, columns = out.shape
    w0, w1, w2, w3 = window[0], window[1], window[2], window[3]
    tile = np.empty((rows + 6) * STRIDE, np.float64)
    smooth = np.empty(2 * STRIDE, np.float64)  # a row of window * x, then a row of window * x^2
    for left in range(0, columns, TILE):
        width = min(TILE, columns - left)
        for i in range(rows + 6):
            source = padded[i, left : left + width + 6]
            target = tile[i * STRIDE : i * STRIDE + width + 6]
            for j in range(width + 6):
                target[j] = source[j]
        for i in range(rows):
            x = tile[i * STRIDE : (i + 7) * STRIDE]
            for j in range(width + 6):
                a0 = x[j]
                a1 = x[j + STRIDE]
                a2 = x[j + 2 * STRIDE]
                a3 = x[j + 3 * STRIDE]
                a4 = x[j + 4 * STRIDE]
                a5 = x[j + 5 * STRIDE]
                a6 = x[j + 6 * STRIDE]
                smooth[j] = w0 * a3 + w1 * (a2 + a4) + w2 * (a1 + a5) + w3 * (a0 + a6)
                smooth[j + STRIDE] = (
                    w0 * (a3 * a3) + w1 * (a2 * a2 + a4 * a4) + w2 * (a1 * a1 + a5 * a5) + w3 * (a0 * a0 + a6 * a6)
                )
            centre = tile[(i + 3) * STRIDE + 3 : (i + 3) * STRIDE + 3 + width]
            target = out[i, left : left + width]
            for j in range(width):
                mu = (
                    w0 * smooth[j + 3]
                    + w1 * (smooth[j + 2] + smooth[j + 4])
                    + w2 * (smooth[j + 1] + smooth[j + 5])
                    + w3 * (smooth[j] + smooth[j + 6])
                )
                square = (
                    w0 * smooth[j + 3 + STRIDE]
                    + w1 * (smooth[j + 2 + STRIDE] + smooth[j + 4 + STRIDE])
                    + w2 * (smooth[j + 1 + STRIDE] + smooth[j + 5 + STRIDE])
                    + w3 * (smooth[j + STRIDE] + smooth[j + 6 + STRIDE])
                )
                value = centre[j]
                target[j] = (value - mu + value * bias) / (np.sqrt(abs(square - mu * mu)) + 1.0)


@compiled()
def add_four(lanes, at, p, q, r, s):
    """Add the moments of four values of one column, in this order, to that column's lanes of one series."""
    pp, qq, rr, ss = p * p, q * q, r * r, s * s
    lanes[at] = lanes[at] + abs(p) + abs(q) + abs(r) + abs(s)
    lanes[at + TILE] = lanes[at + TILE] + pp + qq + rr + ss
    lanes[at + 2 * TILE] = (
        lanes[at + 2 * TILE]
        + (pp if p < 0.0 else 0.0)
        + (qq if q < 0.0 else 0.0)
        + (rr if r < 0.0 else 0.0)
        + (ss if s < 0.0 else 0.0)
    )
    lanes[at + 3 * TILE] = (
        lanes[at + 3 * TILE]
        + (1.0 if p < 0.0 else 0.0)
        + (1.0 if q < 0.0 else 0.0)
        + (1.0 if r < 0.0 else 0.0)
        + (1.0 if s < 0.0 else 0.0)
    )
    lanes[at + 4 * TILE] = (
        lanes[at + 4 * TILE]
        + (1.0 if p > 0.0 else 0.0)
        + (1.0 if q > 0.0 else 0.0)
        + (1.0 if r > 0.0 else 0.0)
        + (1.0 if s > 0.0 else 0.0)
    )


@compiled("void(f8[:, ::1], i8, i8, f8[::1])")
def tally(ringed, first, last, lanes):
    """Add the moments of rows first..last-1 to lanes (SERIES * MOMENTS * TILE,): one a column mod TILE.

    ringed (rows + 1, columns + 2): coefficients with the row above, the column to the left and the one to
    the right. The four products are with the left, the upper, the upper left and the upper right neighbour.
    Rows are taken four at a time, which saves memory traffic and leaves the order of the additions as it
    is; a last group that is short is filled with rows of zeros, which add nothing.
    """
    columns = ringed.shape[1] - 2
    zeros = np.zeros(TILE + 2, np.float64)
    for left in range(0, columns, TILE):
        width = min(TILE, columns - left)
        span = slice(left, left + width + 2)
        for i in range(first, last, 4):
            a = ringed[i - 1, span]
            b = ringed[i, span]
            c = ringed[i + 1, span] if i + 1 < last else zeros
            d = ringed[i + 2, span] if i + 2 < last else zeros
            e = ringed[i + 3, span] if i + 3 < last else zeros
            for j in range(width):
                w, x, y, z = b[j + 1], c[j + 1], d[j + 1], e[j + 1]
                add_four(lanes, j, w, x, y, z)
                add_four(lanes, j + 5 * TILE, w * b[j], x * c[j], y * d[j], z * e[j])
                add_four(lanes, j + 10 * TILE, w * a[j + 1], x * b[j + 1], y * c[j + 1], z * d[j + 1])
                add_four(lanes, j + 15 * TILE, w * a[j], x * b[j], y * c[j], z * d[j])
                add_four(lanes, j + 20 * TILE, w * a[j + 2], x * b[j + 2], y * c[j + 2], z * d[j + 2])


@compiled("void(f8[::1], f8[::1])")
def total(lanes, sums):
    """Sum the lanes of each moment, first to last: (SERIES * MOMENTS * TILE,) -> (SERIES * MOMENTS,)."""
    for moment in range(SERIES * MOMENTS):
        value = 0.0
        for j in range(TILE):
            value += lanes[moment * TILE + j]
        sums[moment] = value


@compiled("void(f8[:, ::1], i8, f8[:, ::1])")
def tally_blocks(band, side, sums):
    """The moments of each square block of a row of blocks, its neighbours wrapped within the block.

    band (side, blocks * side): coefficients; sums (blocks, SERIES * MOMENTS). The fourth product is with the
    upper right neighbour: its pairs are those of the lower left one.
    """
    ringed = np.empty((side + 1, side + 2), np.float64)
    lanes = np.empty(SERIES * MOMENTS * TILE, np.float64)
    for block in range(sums.shape[0]):
        left = block * side
        for i in range(side + 1):
            source = band[(i + side - 1) % side, left : left + side]
            target = ringed[i]
            for j in range(side):
                target[j + 1] = source[j]
            target[0] = source[side - 1]
            target[side + 1] = source[0]
        lanes[:] = 0.0
        tally(ringed, 1, side + 1, lanes)
        total(lanes, sums[block])
