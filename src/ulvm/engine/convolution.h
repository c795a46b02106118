// 3×3 convolution with padding 1 by Winograd's F(4×4, 3×3): 36 products for 16 outputs, not 144.
//
// Source: Lavin & Gray 2016, arXiv 1509.09308, section 4.3.
// A block is 16 tiles of 4×4 outputs, one tile a lane: side by side in a row of tiles, or, where a
// map is narrow, several whole rows of tiles. Lane 4q + j holds tile q + 4j of the block, for so
// four tiles' columns become four vectors within the quarters of registers.

#ifndef ULVM_CONVOLUTION_H
#define ULVM_CONVOLUTION_H

#include <stdbool.h>
#include <stddef.h>

#include "vector.h"

// A feature map: channel after channel, each (height, width) without gaps, then unused up to
// `stride`. Before the first channel there is room for WIDE more floats, behind the last for 5 · WIDE.
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
#elif LANES == 8 || defined(__ARM_NEON)
enum { OUTPUTS = 2, POSITIONS = 3 };
#else
enum { OUTPUTS = 2, POSITIONS = 1 };
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
INLINE void transform_input(const vec d[6], vec t[6]) {
  t[0] = 4.0f * d[0] + (d[4] - 5.0f * d[2]);
  const vec a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
  t[1] = a + b;
  t[2] = a - b;
  const vec c = d[4] - d[2], e = d[3] - d[1];
  t[3] = c + 2.0f * e;
  t[4] = c - 2.0f * e;
  t[5] = 4.0f * d[1] + (d[5] - 5.0f * d[3]);
}

// Aᵀ m: six products → four outputs.
INLINE void transform_output(const vec m[6], vec out[4]) {
  const vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  out[0] = m[0] + s1 + s2;
  out[1] = d1 + 2.0f * d2;
  out[2] = s1 + 4.0f * s2;
  out[3] = d1 + 8.0f * d2 + m[5];
}

// The same, with as many products as sums, for where nothing else is multiplied.
INLINE void transform_output_balanced(const vec m[6], vec out[4]) {
  const vec s1 = m[1] + m[2], d1 = s1 - 2.0f * m[2], s2 = m[3] + m[4], d2 = s2 - 2.0f * m[4];
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
  float *sums;           // (out_channels, 2, WIDE): of outputs and squares, of one row of tiles
} Convolution;

INLINE size_t convolution_scratch(int in_channels, int out_channels) {
  return (size_t)WIDE * (36 * in_channels + 26 * out_channels);
}

// With its scratch memory laid out.
INLINE Convolution make_convolution(int in_channels, int out_channels, const float *weights,
                                    float *scratch) {
  float *products = scratch + (size_t)36 * WIDE * in_channels;
  return (Convolution){in_channels, out_channels, weights, scratch, products,
                       products + (size_t)24 * WIDE * out_channels};
}

// The lines of a block that do not lie in one piece, with what is left and right of them, put
// together in `gathered`; `lines` then points there.
static void gather_lines(Planes in, const float *plane, int row_mask, Block block,
                         float gathered[6][6 * WIDE], const float *lines[6]) {
  memset(gathered, 0, 36 * WIDE * sizeof(float));
  const int first = 4 * block.column;
  const int beyond = in.width - first < 4 * WIDE ? in.width - first : 4 * WIDE;
  const int count = beyond < 4 * block.columns ? beyond : 4 * block.columns;
  for (int i = 0; i < 6; i++) {
    for (int each = 0; each < block.rows; each++) {
      const int y = 4 * (block.row + each) + i - 1;
      if (y < 0 || y >= in.height) continue;
      const float *from = plane + (size_t)(y & row_mask) * in.width;
      memcpy(gathered[i] + WIDE + each * 4 * block.columns, from, count * sizeof(float));
      if (first > 0) gathered[i][WIDE - 1] = from[-1];
      if (first + 4 * WIDE < in.width) gathered[i][5 * WIDE] = from[4 * WIDE];
    }
    lines[i] = gathered[i] + WIDE;
  }
}

INLINE int tile_of(int lane) { return lane / 4 + lane % 4 * 4; }

// Reads the block's tiles, 6×6 inputs each, and transforms them: columns first, in the map's own
// order, then, with every fourth value in one vector, rows.
// row_mask: rows are found at (y & row_mask), for maps of which only some rows are kept.
INLINE void read_tiles(const Convolution *conv, Planes in, int row_mask, Block block, float *tiles) {
  static const float zeros[6 * WIDE];
  const bool narrow = block.rows > 1, gathers = narrow || (in.width & 3);
  const int all_columns = (in.width + 3) / 4;
  // A lane's left or right neighbour may lie outside the map or belong to another row of tiles.
  ivec has_left, has_right;
  for (int lane = 0; lane < WIDE; lane++) {
    const int tile = tile_of(lane), column = block.column + (narrow ? tile % block.columns : tile);
    has_left[lane] = column > 0 ? -1 : 0;
    has_right[lane] = column + 1 < all_columns ? -1 : 0;
  }
  for (int channel = 0; channel < conv->in_channels; channel++) {
    const float *plane = in.data + channel * in.stride + 4 * block.column;
    float gathered[6][6 * WIDE] __attribute__((aligned(64)));
    const float *lines[6];
    UNROLL for (int i = 0; i < 6; i++) {
      const int y = 4 * block.row + i - 1;
      lines[i] = y < 0 || y >= in.height ? zeros + WIDE : plane + (size_t)(y & row_mask) * in.width;
    }
    if (gathers) gather_lines(in, plane, row_mask, block, gathered, lines);

    vec columns[5][6];  // four vectors of the line, then its neighbours left and right in two lanes
    UNROLL for (int part = 0; part < 5; part++) {
      vec d[6];
      UNROLL for (int i = 0; i < 6; i++) {
        d[i] = part < 4 ? load(lines[i] + part * WIDE)
                        : __builtin_shufflevector(load(lines[i] - WIDE),
                                                  load(lines[i] + 4 * WIDE), 15, 16, 15, 16, 15,
                                                  16, 15, 16, 15, 16, 15, 16, 15, 16, 15, 16);
      }
      transform_input(d, columns[part]);
    }
    UNROLL for (int i = 0; i < 6; i++) {
      const vec line[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
      const vec sides = columns[4][i];
      vec d[6];
      transpose_quarters(line, d + 1);
      d[0] = (vec)(has_left & (ivec)__builtin_shufflevector(d[4], sides, 16, 12, 13, 14, 0, 1, 2, 3, 4,
                                                            5, 6, 7, 8, 9, 10, 11));
      d[5] = (vec)(has_right & (ivec)__builtin_shufflevector(d[1], sides, 4, 5, 6, 7, 8, 9, 10, 11, 12,
                                                             13, 14, 15, 1, 2, 3, 17));
      vec t[6];
      transform_input(d, t);
      UNROLL for (int j = 0; j < 6; j++) {
        store(tiles + (((size_t)i * conv->in_channels + channel) * 6 + j) * WIDE, t[j]);
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
    vec m[OUTPUTS][6];
    UNROLL for (int first = 0; first < 6; first += POSITIONS) {
      vec sums[POSITIONS][OUTPUTS];
      UNROLL for (int j = 0; j < POSITIONS; j++) {
        UNROLL for (int k = 0; k < OUTPUTS; k++) sums[j][k] = (vec){0};
      }
      const float *v = tiles + first * WIDE, *w = weights + first * OUTPUTS;
      for (int in = 0; in < in_channels; in++, v += 6 * WIDE, w += 6 * OUTPUTS) {
        UNROLL for (int j = 0; j < POSITIONS; j++) {
          const vec tile = load(v + j * WIDE);
          UNROLL for (int k = 0; k < OUTPUTS; k++) sums[j][k] += tile * w[j * OUTPUTS + k];
        }
      }
      UNROLL for (int j = 0; j < POSITIONS; j++) {
        UNROLL for (int k = 0; k < OUTPUTS; k++) m[k][first + j] = sums[j][k];
      }
    }
    UNROLL for (int k = 0; k < OUTPUTS; k++) {
      vec out[4];
      transform_output(m[k], out);
      float *to = conv->products + ((size_t)(block * OUTPUTS + k) * 24 + row * 4) * WIDE;
      UNROLL for (int x = 0; x < 4; x++) store(to + x * WIDE, out[x]);
    }
  }
}

// Writes row `y` of each row of tiles of the block; the rows lie one after another in `values`.
static void write_lines(Planes out, float *plane, Block block, int rows_per_tile, int y,
                        const float *values) {
  const int first = block.column * rows_per_tile, most = block.columns * rows_per_tile;
  const int count = first + most > out.width ? out.width - first : most;
  for (int each = 0; each < block.rows; each++) {
    const int row = (block.row + each) * rows_per_tile + y;
    if (row >= out.height) break;
    memcpy(plane + (size_t)row * out.width + first, values + (size_t)each * most,
           (size_t)count * sizeof(float));
  }
}

// All ones where output (y, x) of a lane's tile is inside the map and the lane is used.
static ivec inside_map(Planes in, Block block, int y, int x) {
  ivec inside;
  for (int lane = 0; lane < WIDE; lane++) {
    const int tile = tile_of(lane);
    const int row = 4 * (block.row + tile / block.columns) + y;
    const int column = 4 * (block.column + tile % block.columns) + x;
    const bool used = tile < block.rows * block.columns;
    inside[lane] = used && row < in.height && column < in.width ? -1 : 0;
  }
  return inside;
}

// One block of tiles of all output channels, without the bias. With `pooled` the largest of each
// 2×2 outputs is kept, else all. Adds to conv->sums.
INLINE void convolve_block(const Convolution *conv, Planes in, int row_mask, Block block, bool pooled,
                           Planes out) {
  read_tiles(conv, in, row_mask, block, conv->tiles);
  for (int row = 0; row < 6; row++) multiply_row(conv, row);

  const bool whole =
      block.rows * block.columns == WIDE && !(in.width & 3) && !(in.height & 3);
  const bool in_one_piece = whole && block.rows == 1;
  for (int channel = 0; channel < conv->out_channels; channel++) {
    const float *products = conv->products + (size_t)channel * 24 * WIDE;
    float *plane = out.data + channel * out.stride;
    vec o[4][4];                          // column, row
    vec pairs[2][2];                      // the largest of 2×2: row, column
    vec sum = {0}, squares = {0};
    UNROLL for (int x = 0; x < 4; x++) {
      vec m[6];
      UNROLL for (int i = 0; i < 6; i++) m[i] = load(products + (i * 4 + x) * WIDE);
      transform_output_balanced(m, o[x]);
      if (!whole) {
        UNROLL for (int y = 0; y < 4; y++) {
          o[x][y] = (vec)((ivec)o[x][y] & inside_map(in, block, y, x));
        }
      }
      UNROLL for (int y = 0; y < 4; y++) {
        sum += o[x][y];
        squares += o[x][y] * o[x][y];
      }
      if (pooled && x % 2) {
        UNROLL for (int y = 0; y < 2; y++) {
          pairs[y][x / 2] = max_of(max_of(o[x - 1][2 * y], o[x - 1][2 * y + 1]),
                                     max_of(o[x][2 * y], o[x][2 * y + 1]));
        }
      }
    }
    float *total = conv->sums + (size_t)channel * 2 * WIDE;
    store(total, load(total) + sum);
    store(total + WIDE, load(total + WIDE) + squares);

    const int rows_per_tile = pooled ? 2 : 4;
    UNROLL for (int y = 0; y < rows_per_tile; y++) {
      vec line[4];
      if (pooled) {
        const vec left = pairs[y][0], right = pairs[y][1];
        line[0] = __builtin_shufflevector(left, right, 0, 16, 4, 20, 8, 24, 12, 28, 1, 17, 5, 21, 9, 25,
                                          13, 29);
        line[1] = __builtin_shufflevector(left, right, 2, 18, 6, 22, 10, 26, 14, 30, 3, 19, 7, 23, 11,
                                          27, 15, 31);
      } else {
        const vec row[4] = {o[0][y], o[1][y], o[2][y], o[3][y]};
        transpose_quarters(row, line);
      }
      if (in_one_piece) {
        float *to = plane + (size_t)(rows_per_tile * block.row + y) * out.width +
                    rows_per_tile * block.column;
        UNROLL for (int i = 0; i < rows_per_tile; i++) store(to + i * WIDE, line[i]);
      } else {
        float values[4 * WIDE];
        UNROLL for (int i = 0; i < rows_per_tile; i++) store(values + i * WIDE, line[i]);
        write_lines(out, plane, block, rows_per_tile, y, values);
      }
    }
  }
}

// Rows of tiles that one block takes, for a map so vec.
INLINE int rows_of_block(int width) {
  const int tiles = (width + 3) / 4;
  return tiles >= WIDE ? 1 : WIDE / tiles;
}

// All blocks of the rows of tiles from `first` to `last`; `first` is a multiple of rows_of_block.
// sums: (rows of tiles, out_channels), set where a block begins.
INLINE void convolve_rows(const Convolution *conv, Planes in, int row_mask, int first, int last,
                          bool pooled, Planes out, Sums *sums) {
  const int tiles = (in.width + 3) / 4, step = rows_of_block(in.width);
  for (int row = first; row < last; row += step) {
    const int rows = last - row < step ? last - row : step;
    memset(conv->sums, 0, (size_t)conv->out_channels * 2 * WIDE * sizeof(float));
    for (int column = 0; column < tiles; column += WIDE) {
      const int columns = tiles - column < WIDE ? tiles - column : WIDE;
      const Block block = {row, column, rows, columns};
      convolve_block(conv, in, row_mask, block, pooled, out);
    }
    for (int channel = 0; channel < conv->out_channels; channel++) {
      const float *total = conv->sums + (size_t)channel * 2 * WIDE;
      sums[(size_t)row * conv->out_channels + channel] =
          (Sums){sum_of(load(total)), sum_of(load(total + WIDE))};
    }
  }
}

#endif
