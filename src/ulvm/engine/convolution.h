// 3×3 convolution with padding 1 by Winograd's F(4×4, 3×3): 36 products for 16 outputs, not 144.
//
// Source: Lavin & Gray 2016, arXiv 1509.09308, section 4.3.
// A block is 16 tiles of 4×4 outputs, one tile a lane: side by side in a row of tiles, or, where a
// map is narrow, several whole rows of tiles.

#ifndef ULVM_CONVOLUTION_H
#define ULVM_CONVOLUTION_H

#include <stdbool.h>
#include <stddef.h>

#include "vector.h"

// A feature map: channel after channel, each (height, width) without gaps, then unused up to
// `stride`. Behind the last channel there is room for 4 · WIDE more floats.
typedef struct {
  float *data;
  int channels, height, width;
  size_t stride;  // floats from channel to channel, a multiple of WIDE
} Planes;

// Sums of one row of tiles of one channel, of all outputs and of their squares.
typedef struct {
  float sum, squares;
} Sums;

// OUTPUTS channels and POSITIONS of a tile's six in a row are summed up at once, in registers.
#if LANES == 16
enum { OUTPUTS = 4, POSITIONS = 6 };
#elif LANES == 8
enum { OUTPUTS = 2, POSITIONS = 3 };
#elif defined(__ARM_NEON)
enum { OUTPUTS = 2, POSITIONS = 3 };
#else
enum { OUTPUTS = 1, POSITIONS = 3 };
#endif

INLINE size_t transformed_weights(int in_channels, int out_channels) {
  return (size_t)36 * in_channels * out_channels;
}

// (out_channels, in_channels, 3, 3), each output times its `sign`
// → (6 rows, out_channels / OUTPUTS, in_channels, 6 columns, OUTPUTS): G g Gᵀ.
static void transform_weights(const float *weight, const float *sign, int in_channels,
                              int out_channels, float *transformed) {
  static const double G[6][3] = {{1. / 4, 0, 0},           {-1. / 6, -1. / 6, -1. / 6},
                                 {-1. / 6, 1. / 6, -1. / 6}, {1. / 24, 1. / 12, 1. / 6},
                                 {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};
  for (int out = 0; out < out_channels; out++) {
    for (int in = 0; in < in_channels; in++) {
      const float *g = weight + ((size_t)out * in_channels + in) * 9;
      for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 6; j++) {
          double sum = 0;
          for (int a = 0; a < 3; a++) {
            for (int b = 0; b < 3; b++) sum += G[i][a] * G[j][b] * (double)g[a * 3 + b];
          }
          const size_t block = (size_t)i * (out_channels / OUTPUTS) + out / OUTPUTS;
          const size_t at = ((block * in_channels + in) * 6 + j) * OUTPUTS + out % OUTPUTS;
          transformed[at] = (float)(sum * (double)sign[out]);
        }
      }
    }
  }
}

// Bᵀ d: six inputs → six transformed.
INLINE void transform_input(const wide d[6], wide t[6]) {
  t[0] = 4.0f * d[0] + (d[4] - 5.0f * d[2]);
  const wide a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
  t[1] = a + b;
  t[2] = a - b;
  const wide c = d[4] - d[2], e = d[3] - d[1];
  t[3] = c + 2.0f * e;
  t[4] = c - 2.0f * e;
  t[5] = 4.0f * d[1] + (d[5] - 5.0f * d[3]);
}

// Aᵀ m: six products → four outputs.
INLINE void transform_output(const wide m[6], wide out[4]) {
  const wide s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  out[0] = m[0] + s1 + s2;
  out[1] = d1 + 2.0f * d2;
  out[2] = s1 + 4.0f * s2;
  out[3] = d1 + 8.0f * d2 + m[5];
}

// Which tiles a block holds: `rows` rows of tiles from `row`, each with `columns` tiles from `column`.
typedef struct {
  int row, column, rows, columns;
} Block;

typedef struct {
  int in_channels, out_channels;
  const float *weights;  // as transform_weights gives them
  float *tiles;          // (6 rows, in_channels, 6 columns, WIDE): transformed inputs
  float *products;       // (out_channels, 6 rows, 4 columns, WIDE)
} Convolution;

INLINE size_t convolution_scratch(int in_channels, int out_channels) {
  return (size_t)WIDE * (36 * in_channels + 24 * out_channels);
}

// Reads the block's tiles, 6×6 inputs each, and transforms them.
// row_mask: rows are found at (y & row_mask), for maps of which only some rows are kept.
INLINE void read_tiles(const Convolution *conv, Planes in, int row_mask, Block block, float *tiles) {
  const bool narrow = block.rows > 1;
  const bool at_end = block.column + block.columns >= (in.width + 3) / 4;
  // In narrow maps a lane's left or right neighbour may belong to another row of tiles.
  iwide has_left = {0}, has_right = {0};
  for (int lane = 0; lane < WIDE; lane++) {
    const int column = narrow ? lane % block.columns : lane;
    has_left[lane] = narrow && column == 0 ? 0 : -1;
    has_right[lane] = block.column + column + 1 < (in.width + 3) / 4 ? -1 : 0;
  }
  for (int channel = 0; channel < conv->in_channels; channel++) {
    const float *plane = in.data + channel * in.stride;
    wide rows[6][6];
    for (int i = 0; i < 6; i++) {
      float gathered[4 * WIDE] __attribute__((aligned(64)));
      const float *line;
      wide before = {0}, after = {0};
      if (narrow || (in.width & 3)) {
        memset(gathered, 0, sizeof gathered);
        for (int each = 0; each < block.rows; each++) {
          const int y = 4 * (block.row + each) + i - 1;
          if (y < 0 || y >= in.height) continue;
          int count = 4 * block.columns;
          if (4 * block.column + count > in.width) count = in.width - 4 * block.column;
          const float *from = plane + (size_t)(y & row_mask) * in.width + 4 * block.column;
          memcpy(gathered + each * 4 * block.columns, from, count * sizeof(float));
          if (block.column > 0) before[0] = from[-1];
          if (!narrow && !at_end) after[0] = from[count];
        }
        line = gathered;
      } else {
        const int y = 4 * block.row + i - 1;
        if (y < 0 || y >= in.height) {
          for (int j = 0; j < 6; j++) rows[i][j] = (wide){0};
          continue;
        }
        line = plane + (size_t)(y & row_mask) * in.width + 4 * block.column;
        if (block.column > 0) before[0] = line[-1];
        if (!at_end) after[0] = line[4 * WIDE];
      }
      wide even0, odd0, even1, odd1, phases[4];
      unzip(load_wide(line), load_wide(line + WIDE), &even0, &odd0);
      unzip(load_wide(line + 2 * WIDE), load_wide(line + 3 * WIDE), &even1, &odd1);
      unzip(even0, even1, &phases[0], &phases[2]);
      unzip(odd0, odd1, &phases[1], &phases[3]);
      const wide left = __builtin_shufflevector(before, phases[3], 0, 16, 17, 18, 19, 20, 21, 22, 23,
                                                24, 25, 26, 27, 28, 29, 30);
      const wide right = __builtin_shufflevector(phases[0], after, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
                                                 12, 13, 14, 15, 16);
      const wide d[6] = {(wide)((iwide)left & has_left), phases[0], phases[1], phases[2], phases[3],
                         (wide)((iwide)right & has_right)};
      transform_input(d, rows[i]);
    }
    for (int j = 0; j < 6; j++) {
      const wide d[6] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]};
      wide t[6];
      transform_input(d, t);
      for (int i = 0; i < 6; i++) {
        store_wide(tiles + (((size_t)i * conv->in_channels + channel) * 6 + j) * WIDE, t[i]);
      }
    }
  }
}

// Products of one row of the tiles with all weights, summed over the input channels.
INLINE void multiply_row(const Convolution *conv, int row) {
  const int in_channels = conv->in_channels;
  const float *tiles = conv->tiles + (size_t)row * in_channels * 6 * WIDE;
  const int blocks = conv->out_channels / OUTPUTS;
  for (int block = 0; block < blocks; block++) {
    const float *weights =
        conv->weights + ((size_t)row * blocks + block) * in_channels * 6 * OUTPUTS;
    wide m[OUTPUTS][6];
    UNROLL for (int first = 0; first < 6; first += POSITIONS) {
      wide sums[POSITIONS][OUTPUTS];
      UNROLL for (int j = 0; j < POSITIONS; j++) {
        UNROLL for (int k = 0; k < OUTPUTS; k++) sums[j][k] = (wide){0};
      }
      const float *v = tiles + first * WIDE, *w = weights + first * OUTPUTS;
      for (int in = 0; in < in_channels; in++, v += 6 * WIDE, w += 6 * OUTPUTS) {
        UNROLL for (int j = 0; j < POSITIONS; j++) {
          const wide tile = load_wide(v + j * WIDE);
          UNROLL for (int k = 0; k < OUTPUTS; k++) sums[j][k] += tile * w[j * OUTPUTS + k];
        }
      }
      UNROLL for (int j = 0; j < POSITIONS; j++) {
        UNROLL for (int k = 0; k < OUTPUTS; k++) m[k][first + j] = sums[j][k];
      }
    }
    UNROLL for (int k = 0; k < OUTPUTS; k++) {
      wide out[4];
      transform_output(m[k], out);
      float *to = conv->products + ((size_t)(block * OUTPUTS + k) * 24 + row * 4) * WIDE;
      UNROLL for (int x = 0; x < 4; x++) store_wide(to + x * WIDE, out[x]);
    }
  }
}

// Writes `count` floats of each row of tiles of the block; lines lie one after another in `line`.
INLINE void write_lines(Planes out, int channel, Block block, int rows_per_tile, int y, int tile,
                        const float *line) {
  for (int each = 0; each < block.rows; each++) {
    const int row = (block.row + each) * rows_per_tile + y;
    const int first = block.column * tile;
    int count = block.columns * tile;
    if (row >= out.height) break;
    if (first + count > out.width) count = out.width - first;
    memcpy(out.data + channel * out.stride + (size_t)row * out.width + first,
           line + (size_t)each * block.columns * tile, count * sizeof(float));
  }
}

// One block of tiles of all output channels, without the bias. With `pooled` the largest of each
// 2×2 outputs is kept, else all. sums: (rows of tiles, out_channels), added to.
INLINE void convolve_block(const Convolution *conv, Planes in, int row_mask, Block block, bool pooled,
                           Planes out, Sums *sums) {
  read_tiles(conv, in, row_mask, block, conv->tiles);
  for (int row = 0; row < 6; row++) multiply_row(conv, row);

  const bool whole = block.rows == 1 && block.columns == WIDE;
  const bool overhangs = (in.width & 3) || (in.height & 3);
  iwide used = {0};
  for (int lane = 0; lane < WIDE; lane++) used[lane] = lane < block.rows * block.columns ? -1 : 0;
  for (int channel = 0; channel < conv->out_channels; channel++) {
    const float *products = conv->products + (size_t)channel * 24 * WIDE;
    wide o[4][4];  // row, column
    for (int x = 0; x < 4; x++) {
      wide m[6], column[4];
      for (int i = 0; i < 6; i++) m[i] = load_wide(products + (i * 4 + x) * WIDE);
      transform_output(m, column);
      for (int y = 0; y < 4; y++) o[y][x] = column[y];
    }
    if (overhangs) {  // tiles that reach beyond the map
      for (int y = 0; y < 4; y++) {
        for (int x = 0; x < 4; x++) {
          for (int lane = 0; lane < block.rows * block.columns; lane++) {
            const int row = 4 * (block.row + lane / block.columns) + y;
            const int column = 4 * (block.column + lane % block.columns) + x;
            if (row >= in.height || column >= in.width) o[y][x][lane] = 0;
          }
        }
      }
    }
    wide sum = {0}, squares = {0};
    for (int y = 0; y < 4; y++) {
      for (int x = 0; x < 4; x++) {
        sum += o[y][x];
        squares += o[y][x] * o[y][x];
      }
    }
    if (!whole) {
      sum = (wide)((iwide)sum & used);
      squares = (wide)((iwide)squares & used);
    }
    Sums *total = sums + (size_t)block.row * conv->out_channels + channel;
    total->sum += sum_of(sum);
    total->squares += sum_of(squares);

    if (pooled) {
      for (int y = 0; y < 2; y++) {
        wide two[2], line[2];
        for (int x = 0; x < 2; x++) {
          two[x] = max_wide(max_wide(o[2 * y][2 * x], o[2 * y][2 * x + 1]),
                            max_wide(o[2 * y + 1][2 * x], o[2 * y + 1][2 * x + 1]));
        }
        zip(two[0], two[1], &line[0], &line[1]);
        if (whole) {
          float *to = out.data + channel * out.stride + (size_t)(2 * block.row + y) * out.width +
                      2 * block.column;
          store_wide(to, line[0]);
          store_wide(to + WIDE, line[1]);
        } else {
          write_lines(out, channel, block, 2, y, 2, (const float *)line);
        }
      }
    } else {
      for (int y = 0; y < 4; y++) {
        wide even[2], odd[2], line[4];
        zip(o[y][0], o[y][2], &even[0], &even[1]);
        zip(o[y][1], o[y][3], &odd[0], &odd[1]);
        zip(even[0], odd[0], &line[0], &line[1]);
        zip(even[1], odd[1], &line[2], &line[3]);
        if (whole) {
          float *to = out.data + channel * out.stride + (size_t)(4 * block.row + y) * out.width +
                      4 * block.column;
          for (int i = 0; i < 4; i++) store_wide(to + i * WIDE, line[i]);
        } else {
          write_lines(out, channel, block, 4, y, 4, (const float *)line);
        }
      }
    }
  }
}

// Rows of tiles that one block takes, for a map so wide.
INLINE int rows_of_block(int width) {
  const int tiles = (width + 3) / 4;
  return tiles >= WIDE ? 1 : WIDE / tiles;
}

// All blocks of the rows of tiles from `first` to `last`; `first` is a multiple of rows_of_block.
INLINE void convolve_rows(const Convolution *conv, Planes in, int row_mask, int first, int last,
                          bool pooled, Planes out, Sums *sums) {
  const int tiles = (in.width + 3) / 4, step = rows_of_block(in.width);
  for (int row = first; row < last; row += step) {
    const int rows = last - row < step ? last - row : step;
    for (int column = 0; column < tiles; column += WIDE) {
      const int columns = tiles - column < WIDE ? tiles - column : WIDE;
      const Block block = {row, column, rows, columns};
      convolve_block(conv, in, row_mask, block, pooled, out, sums);
    }
  }
}

#endif
