// UltraLight VM-UNet, top to bottom, beside nn/model.py: the same names in the same order.
//
// Compiled once an instruction set, with LEVEL as its name. Shapes stand in comments; maps are
// (channels, height, width). What differs from nn/model.py, only in the order of the work:
// - A step down keeps the largest of each 2×2 raw outputs and their sums; GroupNorm, which is affine
//   once its sums are known, and GELU see a quarter of the pixels. Where a norm's weight is
//   negative, signs are turned in the weights before, so that the largest is the right one.
// - The rescaling to 0..255 is a shift of the pixels and a factor of the first convolution.
// - In a PVM layer a token's values lie by (channel of its group, branch), so that all branches run
//   side by side in a vector; `branches` is rounded up to a power of two for that.
// - The bridged skip is t · (w + (1 + w) · s), computed where it is read.

#include "network.h"

#include <math.h>
#include <stdlib.h>

#include "convolution.h"

#define NAME_(level) level_##level
#define NAME(level) NAME_(level)
#define TEXT_(level) #level
#define TEXT(level) TEXT_(level)

// Tokens that pass through a PVM layer together, a multiple of WIDE: few, to stay in a small cache;
// more where threads wait for each other after each step.
INLINE int chunk_of(int threads) { return threads > 1 ? 128 : 32; }
static const float EPSILON = 1e-5f;  // torch's, of both norms

// ---- weights as they are read

typedef struct {
  int in_channels, out_channels, group, inner, rank, states, branches;
  int side;                // branches in a token: `branches` up to a power of two
  int group_width, inner_width, x_width;  // floats of a token, multiples of WIDE
  float *norm_weight, *norm_bias;  // (in_channels)
  float *in_proj;          // (group, 2 · inner_width)
  float *conv_weight;      // (d_conv, inner_width)
  float *conv_bias;        // (inner_width)
  float *x_proj;           // (inner, x_width): rank, B, C
  float *dt_weight;        // (rank, inner_width)
  float *dt_bias, *D;      // (inner_width)
  float *A;                // (states, inner_width): of powers of two
  float *out_proj;         // (inner, group_width)
  float skip_scale;
  float *project;          // (out_channels / 4, in_channels, 4)
  float *project_bias;     // (out_channels)
} PVM;

typedef struct {
  bool is_pvm;
  int in_channels, out_channels;
  float *sign;             // (out_channels): -1 where the norm's weight is negative and it is pooled
  float *weights;          // of a convolution: transform_weights'
  float *bias;             // of a convolution: (out_channels)
  PVM pvm;
} Stage;

typedef struct {
  Model model;             // sizes, norms, bridge and head, whose weights are read as they are
  Stage encoder[STAGES], decoder[SKIPS];
} Network;

INLINE int up_to(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// Hands out parts of one block of memory; first without one, to count.
typedef struct {
  char *memory;
  size_t used;
} Arena;

static float *take(Arena *arena, size_t floats) {
  float *part = arena->memory ? (float *)(arena->memory + arena->used) : NULL;
  arena->used += (floats * sizeof(float) + 63) / 64 * 64;
  return part;
}

static void pack_pvm(const Model *model, const PVMWeights *from, const float *sign, Arena *arena,
                     PVM *p) {
  const int side = p->side, inner = p->inner, states = p->states, rank = p->rank;
  p->norm_weight = take(arena, p->in_channels);
  p->norm_bias = take(arena, p->in_channels);
  p->in_proj = take(arena, (size_t)p->group * 2 * p->inner_width);
  p->conv_weight = take(arena, (size_t)model->d_conv * p->inner_width);
  p->conv_bias = take(arena, p->inner_width);
  p->x_proj = take(arena, (size_t)inner * p->x_width);
  p->dt_weight = take(arena, (size_t)rank * p->inner_width);
  p->dt_bias = take(arena, p->inner_width);
  p->D = take(arena, p->inner_width);
  p->A = take(arena, (size_t)states * p->inner_width);
  p->out_proj = take(arena, (size_t)inner * p->group_width);
  p->project = take(arena, (size_t)p->out_channels * p->in_channels);
  p->project_bias = take(arena, p->out_channels);
  if (!arena->memory) return;

  memcpy(p->norm_weight, from->norm.weight, p->in_channels * sizeof(float));
  memcpy(p->norm_bias, from->norm.bias, p->in_channels * sizeof(float));
  p->skip_scale = from->skip_scale[0];
  for (int b = 0; b < p->branches; b++) {  // every weight once a branch
    for (int out = 0; out < inner; out++) {
      const int at = out * side + b;
      for (int k = 0; k < p->group; k++) {
        float *row = p->in_proj + (size_t)k * 2 * p->inner_width;
        row[at] = from->in_proj[out * p->group + k];
        row[p->inner_width + at] = from->in_proj[(inner + out) * p->group + k];
      }
      for (int k = 0; k < model->d_conv; k++) {
        p->conv_weight[k * p->inner_width + at] = from->conv.weight[out * model->d_conv + k];
      }
      for (int k = 0; k < rank; k++) {
        p->dt_weight[k * p->inner_width + at] = from->dt_proj.weight[out * rank + k];
      }
      for (int n = 0; n < model->d_state; n++) {
        p->A[n * p->inner_width + at] = -expf(from->A_log[out * model->d_state + n]) * LOG2_E;
      }
      p->conv_bias[at] = from->conv.bias[out];
      p->dt_bias[at] = from->dt_proj.bias[out];
      p->D[at] = from->D[out];
    }
    for (int k = 0; k < inner; k++) {
      float *row = p->x_proj + (size_t)k * p->x_width;
      for (int j = 0; j < rank; j++) row[j * side + b] = from->x_proj[j * inner + k];
      for (int n = 0; n < model->d_state; n++) {
        row[(rank + n) * side + b] = from->x_proj[(rank + n) * inner + k];
        row[(rank + states + n) * side + b] =
            from->x_proj[(rank + model->d_state + n) * inner + k];
      }
      for (int out = 0; out < p->group; out++) {
        p->out_proj[(size_t)k * p->group_width + out * side + b] = from->out_proj[out * inner + k];
      }
    }
  }
  for (int out = 0; out < p->out_channels; out++) {
    for (int k = 0; k < p->in_channels; k++) {
      p->project[((size_t)(out / 4) * p->in_channels + k) * 4 + out % 4] =
          from->project.weight[out * p->in_channels + k] * sign[out];
    }
    p->project_bias[out] = from->project.bias[out] * sign[out];
  }
}

static void pack_stage(const Model *model, const StageWeights *from, int in_channels,
                       int out_channels, const float *pooled_norm, Arena *arena, Stage *stage) {
  stage->is_pvm = from->is_pvm;
  stage->in_channels = in_channels;
  stage->out_channels = out_channels;
  stage->sign = take(arena, out_channels);
  if (arena->memory) {
    for (int i = 0; i < out_channels; i++) {
      stage->sign[i] = pooled_norm && pooled_norm[i] < 0 ? -1.0f : 1.0f;
    }
  }
  if (from->is_pvm) {
    PVM *p = &stage->pvm;
    p->in_channels = in_channels;
    p->out_channels = out_channels;
    p->branches = model->branches;
    for (p->side = 1; p->side < model->branches; p->side *= 2) continue;
    p->group = in_channels / model->branches;
    p->inner = model->expand * p->group;
    p->rank = (p->group + 15) / 16;
    p->states = up_to(model->d_state, 4);
    p->group_width = up_to(p->group * p->side, WIDE);
    p->inner_width = up_to(p->inner * p->side, WIDE);
    p->x_width = up_to((p->rank + 2 * p->states) * p->side, WIDE);
    pack_pvm(model, &from->pvm, stage->sign, arena, p);
    return;
  }
  stage->weights = take(arena, transformed_weights(in_channels, out_channels));
  stage->bias = take(arena, out_channels);
  if (!arena->memory) return;
  transform_weights(from->conv.weight, stage->sign, in_channels, out_channels, stage->weights);
  memcpy(stage->bias, from->conv.bias, out_channels * sizeof(float));
}

static void *pack(const Model *model) {
  Arena arena = {NULL, 0};
  for (;;) {  // counts, then fills
    Network *network = (Network *)take(&arena, (sizeof(Network) + 3) / 4);
    Network counted;
    if (!network) network = &counted;
    network->model = *model;
    const int *widths = model->widths;
    for (int i = 0; i < STAGES; i++) {
      pack_stage(model, &model->encoder[i], i ? widths[i - 1] : model->in_channels, widths[i],
                 i < SKIPS ? model->encoder_norms[i].weight : NULL, &arena, &network->encoder[i]);
    }
    for (int i = 0; i < SKIPS; i++) {
      pack_stage(model, &model->decoder[i], widths[STAGES - 1 - i], widths[STAGES - 2 - i], NULL,
                 &arena, &network->decoder[i]);
    }
    if (arena.memory) return network;
    arena.memory = aligned_new(arena.used);
    arena.used = 0;
    if (!arena.memory) return NULL;
  }
}

// ---- a run: the working memory of one picture

typedef struct {
  float *x;                // (d_conv - 1 + chunk, inner_width), the first rows from the chunk before
  float *g, *out;          // (chunk, group_width)
  float *gate, *conv, *dt, *y;  // (chunk, inner_width)
  float *x_proj;           // (chunk, x_width)
  float *state;            // (states, inner_width)
} Tokens;

typedef struct {
  const Network *network;
  Team *team;
  int threads, height, width;
  float low, scale;        // of the picture: (pixel - low) · scale is 0..255
  const uint8_t *image;
  float *probability;

  Planes skips[SKIPS];     // after GroupNorm, pooling and GELU
  float *mean[SKIPS], *highest[SKIPS];  // over their channels: (height, width)
  float *spatial[SKIPS];   // spatial attention, (height, width)
  Planes bottom, raw, merged[SKIPS];  // merged: after the step up to that skip
  float *logits;           // (classes, height / 2, width / 2)
  size_t logits_stride;
  float *factor, *shift;   // of each channel: GroupNorm as one affine
  float *alpha, *beta;     // of each channel of a skip: skip · (alpha + beta · spatial)
  float *channel_means;    // (sum of the skips' widths)
  Sums *sums;              // (rows of tiles, out_channels)
  Tokens tokens;
  // Each thread's own, a part of `thread_floats` each.
  float *scratch;
  size_t thread_floats;

  // Arguments of the task that runs.
  const Stage *stage;
  Planes in, out;
  bool pooled, doubled, is_last;
  int depth, first_token, count;
  bool finite;
} Run;

// Not a power of two, for then all channels would share few places of a cache.
INLINE size_t plane_stride(int height, int width) {
  return (size_t)up_to(height * width, WIDE) + 3 * WIDE;
}

static Planes take_planes(Arena *arena, int channels, int height, int width) {
  Planes planes = {NULL, channels, height, width, plane_stride(height, width)};
  float *memory = take(arena, planes.stride * channels + 6 * WIDE);
  if (memory) planes.data = memory + WIDE;
  return planes;
}

// Of a skip, among those of all.
INLINE int first_channel(const Run *run, int skip) {
  int first = 0;
  for (int i = 0; i < skip; i++) first += run->skips[i].channels;
  return first;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t count_scratch(const Run *run) {
  const Network *network = run->network;
  size_t floats = 0;
  for (int i = 0; i < STAGES + SKIPS; i++) {
    const Stage *stage = i < STAGES ? &network->encoder[i] : &network->decoder[i - STAGES];
    if (!stage->is_pvm) {
      floats = larger(floats, convolution_scratch(stage->in_channels, stage->out_channels));
    } else {
      floats = larger(floats, (size_t)2 * WIDE * up_to(stage->in_channels, 4));
    }
  }
  // The first stage's rows, of which some are kept; or a row that is doubled, and its weights.
  const size_t picture = (size_t)network->model.in_channels * (16 * run->width + WIDE) + 6 * WIDE;
  size_t row = (size_t)16 * (run->width + 4 * WIDE);
  for (int i = 0; i < SKIPS; i++) {
    const size_t width = (size_t)(run->width >> (i + 1)) + 4 * WIDE;
    row = larger(row, (2 * network->model.widths[i] + 4) * width);
  }
  return floats + larger(picture, row);
}

// Takes all memory of a run from the arena; counts it where the arena has none.
static void lay_out(Run *run, Arena *arena) {
  const Network *network = run->network;
  const Model *model = &network->model;
  int height = run->height, width = run->width, total = 0, highest = 1, raw = 0;
  for (int i = 0; i < SKIPS; i++) {
    const int h = height >> (i + 1), w = width >> (i + 1), channels = model->widths[i];
    run->skips[i] = take_planes(arena, channels, h, w);
    const size_t pixels = up_to(h * w, WIDE) + 4 * WIDE;
    run->mean[i] = take(arena, pixels);
    run->highest[i] = take(arena, pixels);
    run->spatial[i] = take(arena, pixels);
    total += channels;
    if (i > 0) run->merged[i] = take_planes(arena, channels, h, w);
  }
  run->bottom = take_planes(arena, model->widths[STAGES - 1], height >> SKIPS, width >> SKIPS);
  // Unpooled PVM outputs and what a decoder's stage gives before its norm.
  for (int i = 0; i < STAGES; i++) {
    const int pixels = (int)plane_stride(height >> i, width >> i);
    highest = (int)larger(highest, model->widths[i]);
    if (network->encoder[i].is_pvm) raw = (int)larger(raw, pixels * model->widths[i]);
    const int below = (int)plane_stride(height >> (i + 1), width >> (i + 1));
    if (i < SKIPS) raw = (int)larger(raw, below * model->widths[i]);
    if (i > 0 && i < SKIPS) raw = (int)larger(raw, below * model->widths[i - 1]);
  }
  run->raw.data = take(arena, raw + 4 * WIDE);
  run->logits_stride = plane_stride(height / 2, width / 2);
  run->logits = take(arena, model->classes * run->logits_stride + 4 * WIDE);
  run->factor = take(arena, highest);
  run->shift = take(arena, highest);
  run->alpha = take(arena, total);
  run->beta = take(arena, total);
  run->channel_means = take(arena, total);
  run->sums = (Sums *)take(arena, (size_t)2 * ((height + 3) / 4) * highest);
  Tokens *tokens = &run->tokens;
  size_t group = 0, inner = 0, x = 0, states = 0;
  for (int i = 0; i < STAGES + SKIPS; i++) {
    const Stage *stage = i < STAGES ? &network->encoder[i] : &network->decoder[i - STAGES];
    if (!stage->is_pvm) continue;
    group = larger(group, stage->pvm.group_width);
    inner = larger(inner, stage->pvm.inner_width);
    x = larger(x, stage->pvm.x_width);
    states = larger(states, stage->pvm.states);
  }
  const size_t chunk = chunk_of(run->threads);
  tokens->x = take(arena, (model->d_conv - 1 + chunk) * inner);
  tokens->g = take(arena, chunk * group);
  tokens->out = take(arena, chunk * group);
  tokens->gate = take(arena, chunk * inner);
  tokens->conv = take(arena, chunk * inner);
  tokens->dt = take(arena, chunk * inner);
  tokens->y = take(arena, chunk * inner);
  tokens->x_proj = take(arena, chunk * x);
  tokens->state = take(arena, states * inner);
  run->thread_floats = (count_scratch(run) + 15) / 16 * 16;
  run->scratch = take(arena, run->thread_floats * run->threads);
}

// The part of `count` items that a thread does, in multiples of `step`.
INLINE void share(int count, int step, int thread, int threads, int *first, int *last) {
  const int steps = (count + step - 1) / step;
  *first = steps * thread / threads * step;
  *last = steps * (thread + 1) / threads * step;
  if (*last > count) *last = count;
}

// ---- the picture

static void normalise(Run *run) {
  const size_t bytes = (size_t)run->height * run->width * run->network->model.in_channels;
  uint8_t low = 255, high = 0;
  for (size_t i = 0; i < bytes; i++) {
    low = run->image[i] < low ? run->image[i] : low;
    high = run->image[i] > high ? run->image[i] : high;
  }
  run->low = low;
  run->scale = 255.0f / (high > low ? (float)(high - low) : 1e-3f);
}

// One row of the picture → a row of each channel, as floats from 0.
INLINE void read_row(const uint8_t *restrict pixels, int width, int channels, float low,
                     float *restrict rows, size_t stride) {
  if (channels == 3) {
    float *red = rows, *green = rows + stride, *blue = rows + 2 * stride;
    for (int x = 0; x < width; x++) {
      red[x] = (float)pixels[3 * x] - low;
      green[x] = (float)pixels[3 * x + 1] - low;
      blue[x] = (float)pixels[3 * x + 2] - low;
    }
    return;
  }
  for (int channel = 0; channel < channels; channel++) {
    float *row = rows + channel * stride;
    for (int x = 0; x < width; x++) row[x] = (float)pixels[x * channels + channel] - low;
  }
}

static void convolve_picture(Run *run, Convolution *conv, float *kept, int first, int last) {
  const int height = run->height, width = run->width, channels = conv->in_channels;
  const int step = rows_of_block(width), mask = step == 1 ? 7 : 15;
  const size_t stride = (size_t)up_to((mask + 1) * width, WIDE);
  const Planes rows = {kept + WIDE, channels, height, width, stride};
  int read = 4 * first - 1 < 0 ? 0 : 4 * first - 1;
  for (int row = first; row < last; row += step) {
    const int end = row + step < last ? row + step : last;
    for (; read <= 4 * end && read < height; read++) {
      read_row(run->image + (size_t)read * width * channels, width, channels, run->low,
               rows.data + (size_t)(read & mask) * width, stride);
    }
    convolve_rows(conv, rows, mask, row, end, run->pooled, run->out, run->sums);
  }
}

// ---- 3×3 convolution

static void convolve_task(void *work, int thread, int threads) {
  Run *run = work;
  const Stage *stage = run->stage;
  float *scratch = run->scratch + thread * run->thread_floats;
  Convolution conv =
      make_convolution(stage->in_channels, stage->out_channels, stage->weights, scratch);
  int first, last;
  share((run->in.height + 3) / 4, rows_of_block(run->in.width), thread, threads, &first, &last);
  if (!run->in.data) {
    float *kept = scratch + convolution_scratch(stage->in_channels, stage->out_channels);
    convolve_picture(run, &conv, kept, first, last);
  } else if (run->pooled) {
    convolve_rows(&conv, run->in, -1, first, last, true, run->out, run->sums);
  } else {
    convolve_rows(&conv, run->in, -1, first, last, false, run->out, run->sums);
  }
}

// ---- the PVM layer

// `side` values of one channel of a token, one a branch, over and over: lanes of vector v.
INLINE vec load_branches(const float *from, int side, int v) {
  if (side == 4) return load_four(from);
  vec values;
  for (int lane = 0; lane < WIDE; lane++) values[lane] = from[(v * WIDE + lane) & (side - 1)];
  return values;
}

// So many tokens and vectors of their outputs are summed up at once, in registers.
#if LANES == 16
enum { TOKENS_AT_ONCE = 4, VECTORS_AT_ONCE = 3, STATES_AT_ONCE = 16 };
#elif LANES == 8
enum { TOKENS_AT_ONCE = 2, VECTORS_AT_ONCE = 3, STATES_AT_ONCE = 8 };
#else
enum { TOKENS_AT_ONCE = 2, VECTORS_AT_ONCE = 1, STATES_AT_ONCE = 4 };
#endif

INLINE void multiply_block(const float *tokens, size_t in_width, int side, int depth,
                           const float *weights, size_t width, int v, int vectors, float *out,
                           size_t out_width) {
  vec sums[TOKENS_AT_ONCE][VECTORS_AT_ONCE];
  UNROLL for (int t = 0; t < TOKENS_AT_ONCE; t++) {
    UNROLL for (int i = 0; i < vectors; i++) sums[t][i] = (vec){0};
  }
  for (int k = 0; k < depth; k++) {
    vec w[VECTORS_AT_ONCE];
    UNROLL for (int i = 0; i < vectors; i++) w[i] = load(weights + k * width + (v + i) * WIDE);
    UNROLL for (int t = 0; t < TOKENS_AT_ONCE; t++) {
      UNROLL for (int i = 0; i < vectors; i++) {
        sums[t][i] += load_branches(tokens + t * in_width + k * side, side, v + i) * w[i];
      }
    }
  }
  UNROLL for (int t = 0; t < TOKENS_AT_ONCE; t++) {
    UNROLL for (int i = 0; i < vectors; i++) store(out + t * out_width + (v + i) * WIDE, sums[t][i]);
  }
}

// tokens (…, depth · side) by weights (depth, width) → out (…, out_width), from token `first` to
// `last`, a multiple of 4. used: floats of a row of `out` that are wanted.
INLINE void multiply_tokens(const float *tokens, size_t in_width, int side, int depth,
                            const float *weights, size_t width, int used, float *out,
                            size_t out_width, int first, int last) {
  const int vectors = (used + WIDE - 1) / WIDE;
  for (int t = first; t < last; t += TOKENS_AT_ONCE) {
    const float *in = tokens + t * in_width;
    float *to = out + t * out_width;
    int v = 0;
    for (; v + VECTORS_AT_ONCE <= vectors; v += VECTORS_AT_ONCE) {
      multiply_block(in, in_width, side, depth, weights, width, v, VECTORS_AT_ONCE, to, out_width);
    }
    for (; v < vectors; v++) {
      multiply_block(in, in_width, side, depth, weights, width, v, 1, to, out_width);
    }
  }
}

// LayerNorm of 16 tokens: their channels → normal values, both (in_channels, WIDE).
INLINE void layer_norm(const PVM *p, float *channels) {
  vec mean = {0}, variance = {0};
  for (int c = 0; c < p->in_channels; c++) mean += load(channels + c * WIDE);
  mean /= (float)p->in_channels;
  for (int c = 0; c < p->in_channels; c++) {
    const vec d = load(channels + c * WIDE) - mean;
    variance += d * d;
  }
  float factors[WIDE];
  store(factors, variance / (float)p->in_channels + EPSILON);
  for (int lane = 0; lane < WIDE; lane++) factors[lane] = 1.0f / sqrtf(factors[lane]);
  const vec factor = load(factors);
  for (int c = 0; c < p->in_channels; c++) {
    const vec normal = (load(channels + c * WIDE) - mean) * factor;
    store(channels + c * WIDE, normal * p->norm_weight[c] + p->norm_bias[c]);
  }
}

// (in_channels, WIDE) → (WIDE, group_width), by channel of the group and branch.
INLINE void to_tokens(const PVM *p, const float *channels, float *tokens) {
  for (int k = 0; k < p->group; k++) {
    if (p->side == 4 && p->branches == 4) {
      vec b[4], even[2], odd[2], line[4];
      for (int i = 0; i < 4; i++) b[i] = load(channels + (i * p->group + k) * WIDE);
      zip(b[0], b[2], &even[0], &even[1]);
      zip(b[1], b[3], &odd[0], &odd[1]);
      zip(even[0], odd[0], &line[0], &line[1]);
      zip(even[1], odd[1], &line[2], &line[3]);
      const float *values = (const float *)line;
      UNROLL for (int t = 0; t < WIDE; t++) {
        memcpy(tokens + t * p->group_width + k * 4, values + t * 4, 4 * sizeof(float));
      }
      continue;
    }
    for (int b = 0; b < p->branches; b++) {
      for (int t = 0; t < WIDE; t++) {
        tokens[t * p->group_width + k * p->side + b] = channels[(b * p->group + k) * WIDE + t];
      }
    }
  }
}

// The inverse.
INLINE void from_tokens(const PVM *p, const float *tokens, float *channels) {
  for (int k = 0; k < p->group; k++) {
    if (p->side == 4 && p->branches == 4) {
      vec line[4], even[2], odd[2], b[4];
      UNROLL for (int t = 0; t < WIDE; t++) {
        memcpy((float *)line + t * 4, tokens + t * p->group_width + k * 4, 4 * sizeof(float));
      }
      unzip(line[0], line[1], &even[0], &odd[0]);
      unzip(line[2], line[3], &even[1], &odd[1]);
      unzip(even[0], even[1], &b[0], &b[2]);
      unzip(odd[0], odd[1], &b[1], &b[3]);
      for (int i = 0; i < 4; i++) store(channels + (i * p->group + k) * WIDE, b[i]);
      continue;
    }
    for (int b = 0; b < p->branches; b++) {
      for (int t = 0; t < WIDE; t++) {
        channels[(b * p->group + k) * WIDE + t] = tokens[t * p->group_width + k * p->side + b];
      }
    }
  }
}

// All of a chunk that is done token by token before the scan.
INLINE void before_scan(Run *run, const PVM *p, int side, float *scratch, int first, int last) {
  const Tokens *tokens = &run->tokens;
  const int inner = p->inner_width, d_conv = run->network->model.d_conv;
  float *x = tokens->x + (size_t)(d_conv - 1) * inner;
  for (int t = first; t < last; t += WIDE) {
    for (int c = 0; c < p->in_channels; c++) {
      const float *from = run->in.data + c * run->in.stride + run->first_token + t;
      store(scratch + c * WIDE, load(from));
    }
    layer_norm(p, scratch);
    to_tokens(p, scratch, tokens->g + (size_t)t * p->group_width);
  }
  multiply_tokens(tokens->g, p->group_width, side, p->group, p->in_proj, 2 * inner,
                  p->inner * p->side, x, inner, first, last);
  multiply_tokens(tokens->g, p->group_width, side, p->group, p->in_proj + inner, 2 * inner,
                  p->inner * p->side, tokens->gate, inner, first, last);
}

INLINE void before_scan_after_conv(Run *run, const PVM *p, int side, int first, int last) {
  const Tokens *tokens = &run->tokens;
  const int inner = p->inner_width, d_conv = run->network->model.d_conv;
  for (int t = first; t < last; t++) {
    for (int i = 0; i < inner; i += WIDE) {
      vec sum = load(p->conv_bias + i);
      for (int k = 0; k < d_conv; k++) {  // causal: row t + k holds token t + k - (d_conv - 1)
        sum += load(tokens->x + (size_t)(t + k) * inner + i) * load(p->conv_weight + k * inner + i);
      }
      store(tokens->conv + (size_t)t * inner + i, silu(sum));
      float *gate = tokens->gate + (size_t)t * inner + i;
      store(gate, silu(load(gate)));
    }
  }
  multiply_tokens(tokens->conv, inner, side, p->inner, p->x_proj, p->x_width,
                  (p->rank + 2 * p->states) * p->side, tokens->x_proj, p->x_width, first, last);
  for (int t = first; t < last; t++) {
    for (int i = 0; i < inner; i += WIDE) {
      vec sum = load(p->dt_bias + i);
      for (int k = 0; k < p->rank; k++) {
        const float *rank = tokens->x_proj + (size_t)t * p->x_width + k * side;
        sum += load_branches(rank, side, i / WIDE) * load(p->dt_weight + k * inner + i);
      }
      store(tokens->dt + (size_t)t * inner + i, softplus(sum));
    }
  }
}

// state = exp(dt · A) · state + dt · B · x, y = C · state + D · x, then the gate; for some states
// of one vector of (channel, branch), along the chunk.
INLINE void selective_scan(const Run *run, const PVM *p, int side, int i, int first_state,
                           int states) {
  const Tokens *tokens = &run->tokens;
  const int inner = p->inner_width;
  vec state[16], A[16];
  UNROLL for (int n = 0; n < states; n++) {
    state[n] = load(tokens->state + (size_t)(first_state + n) * inner + i);
    A[n] = load(p->A + (size_t)(first_state + n) * inner + i);
  }
  const vec D = load(p->D + i);
  for (int t = 0; t < run->count; t++) {
    const size_t at = (size_t)t * inner + i;
    const float *B = tokens->x_proj + (size_t)t * p->x_width + (p->rank + first_state) * side;
    const float *C = B + p->states * side;
    const vec dt = load(tokens->dt + at), x = load(tokens->conv + at), dx = dt * x;
    vec sums[2] = {first_state ? load(tokens->y + at) : D * x, {0}};
    UNROLL for (int n = 0; n < states; n++) {
      const vec decay = exp2_falling(dt, A[n]);
      state[n] = decay * state[n] + dx * load_branches(B + n * side, side, i / WIDE);
      sums[n & 1] += load_branches(C + n * side, side, i / WIDE) * state[n];
    }
    vec y = sums[0] + sums[1];
    if (first_state + states == p->states) y *= load(tokens->gate + at);
    store(tokens->y + at, y);
  }
  UNROLL for (int n = 0; n < states; n++) {
    store(tokens->state + (size_t)(first_state + n) * inner + i, state[n]);
  }
}

INLINE void after_scan(Run *run, const PVM *p, int side, float *scratch, int first, int last) {
  const Tokens *tokens = &run->tokens;
  multiply_tokens(tokens->y, p->inner_width, side, p->inner, p->out_proj, p->group_width,
                  p->group * p->side, tokens->out, p->group_width, first, last);
  for (size_t i = (size_t)first * p->group_width; i < (size_t)last * p->group_width; i += WIDE) {
    store(tokens->out + i, load(tokens->out + i) + p->skip_scale * load(tokens->g + i));
  }
  for (int t = first; t < last; t += WIDE) {
    from_tokens(p, tokens->out + (size_t)t * p->group_width, scratch);
    layer_norm(p, scratch);
    for (int out = 0; out < p->out_channels; out += 4) {
      const float *weights = p->project + (size_t)out * p->in_channels;
      vec sums[4];
      UNROLL for (int k = 0; k < 4; k++) sums[k] = splat(p->project_bias[out + k]);
      for (int c = 0; c < p->in_channels; c++, weights += 4) {
        const vec value = load(scratch + c * WIDE);
        UNROLL for (int k = 0; k < 4; k++) sums[k] += value * weights[k];
      }
      UNROLL for (int k = 0; k < 4; k++) {
        store(run->out.data + (out + k) * run->out.stride + run->first_token + t, sums[k]);
      }
    }
  }
}

// The tasks below share a chunk's tokens, or in the scan its channels.
#define FOR_BRANCHES(call4, call) \
  if (p->side == 4) {             \
    call4;                        \
  } else {                        \
    call;                         \
  }

static void before_scan_task(void *work, int thread, int threads) {
  Run *run = work;
  const PVM *p = &run->stage->pvm;
  float *scratch = run->scratch + thread * run->thread_floats;
  int first, last;
  share(run->count, WIDE, thread, threads, &first, &last);
  last = up_to(last, 4);
  FOR_BRANCHES(before_scan(run, p, 4, scratch, first, last),
               before_scan(run, p, p->side, scratch, first, last))
}

static void after_conv_task(void *work, int thread, int threads) {
  Run *run = work;
  const PVM *p = &run->stage->pvm;
  int first, last;
  share(run->count, WIDE, thread, threads, &first, &last);
  last = up_to(last, 4);
  FOR_BRANCHES(before_scan_after_conv(run, p, 4, first, last),
               before_scan_after_conv(run, p, p->side, first, last))
}

static void scan_task(void *work, int thread, int threads) {
  Run *run = work;
  const PVM *p = &run->stage->pvm;
  int first, last;
  share(p->inner * p->side, WIDE, thread, threads, &first, &last);
  for (int i = first; i < last; i += WIDE) {
    int n = 0;
    for (; n + STATES_AT_ONCE <= p->states; n += STATES_AT_ONCE) {
      FOR_BRANCHES(selective_scan(run, p, 4, i, n, STATES_AT_ONCE),
                   selective_scan(run, p, p->side, i, n, STATES_AT_ONCE))
    }
    for (; n < p->states; n += 4) selective_scan(run, p, p->side, i, n, 4);
  }
}

static void after_scan_task(void *work, int thread, int threads) {
  Run *run = work;
  const PVM *p = &run->stage->pvm;
  float *scratch = run->scratch + thread * run->thread_floats;
  int first, last;
  share(run->count, WIDE, thread, threads, &first, &last);
  last = up_to(last, 4);
  FOR_BRANCHES(after_scan(run, p, 4, scratch, first, last),
               after_scan(run, p, p->side, scratch, first, last))
}

// (in_channels, height, width) → (out_channels, height, width), chunk by chunk of tokens.
static void pvm_layer(Run *run) {
  const PVM *p = &run->stage->pvm;
  const Tokens *tokens = &run->tokens;
  const int kept = run->network->model.d_conv - 1;
  memset(tokens->x, 0, (size_t)kept * p->inner_width * sizeof(float));
  memset(tokens->state, 0, (size_t)p->states * p->inner_width * sizeof(float));
  const int length = run->in.height * run->in.width;
  const int chunk = chunk_of(run->threads);
  for (run->first_token = 0; run->first_token < length; run->first_token += chunk) {
    run->count = length - run->first_token < chunk ? length - run->first_token : chunk;
    team_run(run->team, before_scan_task, run);
    team_run(run->team, after_conv_task, run);
    team_run(run->team, scan_task, run);
    team_run(run->team, after_scan_task, run);
    memmove(tokens->x, tokens->x + (size_t)run->count * p->inner_width,
            (size_t)kept * p->inner_width * sizeof(float));
  }
}

// ---- GroupNorm

// Four groups, from sums over the raw outputs, each times the stage's sign, to one factor and one
// shift a channel. A convolution's bias and the picture's scale are not in the raw outputs yet.
static void group_norm(Run *run, const Affine *norm, float scale, int rows, int pixels) {
  const Stage *stage = run->stage;
  const int channels = stage->out_channels, group = channels / 4;
  for (int first = 0; first < channels; first += group) {
    double mean = 0, squares = 0;
    for (int c = first; c < first + group; c++) {
      double sum = 0, sum_of_squares = 0;
      for (int row = 0; row < rows; row++) {
        sum += (double)run->sums[row * channels + c].sum;
        sum_of_squares += (double)run->sums[row * channels + c].squares;
      }
      const double bias = stage->is_pvm ? 0 : (double)stage->bias[c];
      sum *= (double)(stage->sign[c] * scale);
      sum_of_squares *= (double)scale * (double)scale;
      mean += sum + bias * pixels;
      squares += sum_of_squares + bias * (2 * sum + bias * pixels);
    }
    mean /= (double)group * pixels;
    const double variance = squares / ((double)group * pixels) - mean * mean;
    const double deviation = sqrt((variance > 0 ? variance : variance * 0) + (double)EPSILON);
    for (int c = first; c < first + group; c++) {
      const double bias = stage->is_pvm ? 0 : (double)stage->bias[c];
      const double factor = (double)norm->weight[c] / deviation;
      run->factor[c] = (float)(factor * (double)(stage->sign[c] * scale));
      run->shift[c] = (float)(factor * (bias - mean) + (double)norm->bias[c]);
    }
  }
}

// The sums of a PVM layer's outputs, and of a narrow map's: one row a channel.
static void sum_channels(Run *run, Planes planes) {
  const int pixels = planes.height * planes.width;
  for (int c = 0; c < planes.channels; c++) {
    const float *plane = planes.data + c * planes.stride;
    vec sum = {0}, squares = {0};
    int i = 0;
    for (; i + WIDE <= pixels; i += WIDE) {
      const vec value = load(plane + i);
      sum += value;
      squares += value * value;
    }
    for (; i < pixels; i++) {
      sum[0] += plane[i];
      squares[0] += plane[i] * plane[i];
    }
    run->sums[c] = (Sums){sum_of(sum), sum_of(squares)};
  }
}

// ---- steps down

// The largest of each 2×2.
static void pool(Planes in, Planes out) {
  for (int c = 0; c < out.channels; c++) {
    for (int y = 0; y < out.height; y++) {
      const float *upper = in.data + c * in.stride + (size_t)2 * y * in.width;
      const float *lower = upper + in.width;
      float *to = out.data + c * out.stride + (size_t)y * out.width;
      int x = 0;
      for (; x + WIDE <= out.width; x += WIDE) {
        vec even, odd;
        unzip(max_of(load(upper + 2 * x), load(lower + 2 * x)),
              max_of(load(upper + 2 * x + WIDE), load(lower + 2 * x + WIDE)), &even,
              &odd);
        store(to + x, max_of(even, odd));
      }
      for (; x < out.width; x++) {
        const float left = upper[2 * x] > lower[2 * x] ? upper[2 * x] : lower[2 * x];
        const float right =
            upper[2 * x + 1] > lower[2 * x + 1] ? upper[2 * x + 1] : lower[2 * x + 1];
        to[x] = left > right ? left : right;
      }
    }
  }
}

// GroupNorm's affine and GELU, in place; mean and maximum over the channels for the bridge.
static void activate_task(void *work, int thread, int threads) {
  Run *run = work;
  const Planes planes = run->out;
  float *means = run->depth < SKIPS ? run->mean[run->depth] : NULL;
  float *highest = run->depth < SKIPS ? run->highest[run->depth] : NULL;
  int first, last;
  share(planes.height * planes.width, WIDE, thread, threads, &first, &last);
  for (int i = first; i < last; i += WIDE) {
    vec sum = {0}, most = splat(-INFINITY);
    for (int c = 0; c < planes.channels; c++) {
      float *at = planes.data + c * planes.stride + i;
      const vec value = gelu(load(at) * run->factor[c] + run->shift[c]);
      store(at, value);
      sum += value;
      most = max_of(most, value);
    }
    if (means) {
      store(means + i, sum / (float)planes.channels);
      store(highest + i, most);
    }
  }
}

// A stage's block: (in_channels, height, width) → (out_channels, the same or half of it).
static int run_block(Run *run, const Stage *stage, Planes in, bool pooled, Planes out) {
  run->stage = stage;
  run->in = in;
  run->pooled = pooled;
  run->out = out;
  if (!stage->is_pvm) {
    const int rows = (in.height + 3) / 4;
    memset(run->sums, 0, (size_t)rows * stage->out_channels * sizeof(Sums));
    team_run(run->team, convolve_task, run);
    return rows;
  }
  if (pooled) {
    run->out = run->raw;
    run->out.channels = stage->out_channels;
    run->out.height = in.height;
    run->out.width = in.width;
    run->out.stride = plane_stride(in.height, in.width);
  }
  pvm_layer(run);
  sum_channels(run, run->out);
  if (pooled) pool(run->out, out);
  run->out = out;
  return 1;
}

// ---- the skip bridge

// 7×7 convolution, dilation 3, of mean and maximum, then sigmoid. A row of the maps adds to seven
// rows of the output, three apart; so rows of one remainder by three go together.
static void spatial_attention_task(void *work, int thread, int threads) {
  Run *run = work;
  const int skip = run->depth;
  float *scratch = run->scratch + thread * run->thread_floats;
  const Affine *conv = &run->network->model.bridge_spatial;
  const int height = run->skips[skip].height, width = run->skips[skip].width;
  const float *maps[2] = {run->mean[skip], run->highest[skip]};
  float *padded[2] = {scratch + WIDE, scratch + 3 * WIDE + up_to(width, WIDE)};  // 9 zeros on either side
  memset(scratch, 0, (size_t)(2 * up_to(width, WIDE) + 6 * WIDE) * sizeof(float));
  for (int part = thread; part < 3; part += threads) {
    const int rows = (height - part + 2) / 3;
    if (rows <= 0) continue;
    float *sums = scratch + 2 * up_to(width, WIDE) + 6 * WIDE;  // (7, width), used in a ring
    const int stride = up_to(width, WIDE);
    for (int i = 0; i < 7 * stride; i++) sums[i] = conv->bias[0];
    for (int row = 0; row < rows + 3; row++) {  // the last three are below the map
      const int y = part + 3 * row;
      if (row < rows) {
        for (int m = 0; m < 2; m++) memcpy(padded[m], maps[m] + (size_t)y * width, width * sizeof(float));
        float *rows_of_sums[7];
        for (int k = 0; k < 7; k++) rows_of_sums[k] = sums + (row + 10 - k) % 7 * stride;
        for (int x = 0; x < width; x += WIDE) {
          vec total[7];
          UNROLL for (int k = 0; k < 7; k++) total[k] = load(rows_of_sums[k] + x);
          for (int m = 0; m < 2; m++) {
            UNROLL for (int j = 0; j < 7; j++) {
              const vec value = load(padded[m] + x + 3 * j - 9);
              UNROLL for (int k = 0; k < 7; k++) {
                total[k] += value * conv->weight[m * 49 + k * 7 + j];
              }
            }
          }
          UNROLL for (int k = 0; k < 7; k++) store(rows_of_sums[k] + x, total[k]);
        }
      }
      // Output row - 3 has all its seven rows now.
      float *done = sums + (row + 7 - 3) % 7 * stride;
      if (row >= 3) {
        float *to = run->spatial[skip] + (size_t)(part + 3 * (row - 3)) * width;
        for (int x = 0; x < width; x += WIDE) {
          store_some(to + x, sigmoid(load(done + x)), width - x);
        }
      }
      for (int x = 0; x < stride; x++) done[x] = conv->bias[0];
    }
  }
}

// The mean of each channel of a skip, after spatial attention and its residual.
static void channel_means_task(void *work, int thread, int threads) {
  Run *run = work;
  const bool spatial = run->network->model.spatial;
  const Planes skip = run->skips[run->depth];
  const int pixels = skip.height * skip.width;
  float *means = run->channel_means + first_channel(run, run->depth);
  for (int c = thread; c < skip.channels; c += threads) {
    const float *plane = skip.data + c * skip.stride, *map = run->spatial[run->depth];
    double total = 0;
    int i = 0;
    for (int end; i + 4 * WIDE <= pixels;) {  // in parts, for float32 adds few numbers well
      vec sums[4] = {{0}};
      end = i + 256 * WIDE < pixels ? i + 256 * WIDE : pixels;
      for (; i + 4 * WIDE <= end; i += 4 * WIDE) {
        UNROLL for (int k = 0; k < 4; k++) {
          const vec value = load(plane + i + k * WIDE);
          sums[k] += spatial ? value * load(map + i + k * WIDE) + value : value;
        }
      }
      total += (double)sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    for (; i < pixels; i++) total += (double)(spatial ? plane[i] * map[i] + plane[i] : plane[i]);
    means[c] = (float)(total / pixels);
  }
}

// What channel attention gives each channel of all skips, 0..1, from the means of all.
static void channel_attention(Run *run, float *weights) {
  const Model *model = &run->network->model;
  const int total = first_channel(run, SKIPS);
  const float *k = model->bridge_channel;
  float before = 0, *means = run->channel_means;
  for (int i = 0; i < total; i++) {  // the 1-D convolution, in place
    const float here = means[i], after = i + 1 < total ? means[i + 1] : 0;
    means[i] = k[0] * before + k[1] * here + k[2] * after;
    before = here;
  }
  for (int skip = 0; skip < SKIPS; skip++) {
    const Affine *head = &model->bridge_heads[skip];
    for (int c = 0; c < run->skips[skip].channels; c++) {
      const float *row = head->weight + (size_t)c * total;
      vec sums = {0};
      int i = 0;
      for (; i + WIDE <= total; i += WIDE) sums += load(row + i) * load(means + i);
      float sum = sum_of(sums) + head->bias[c];
      for (; i < total; i++) sum += row[i] * means[i];
      *weights++ = 1 / (1 + expf(-sum));
    }
  }
}

// With attended = skip · s and residual = skip · (1 + s), s the spatial attention, the bridged skip
// is w · residual + attended, w the channel attention: skip · (w + (1 + w) · s). Without channel
// attention it is the residual, without spatial attention both are the skip itself.
static void skip_bridge(Run *run) {
  const Model *model = &run->network->model;
  float *w = run->alpha;
  if (model->channel) channel_attention(run, w);
  for (int i = 0; i < first_channel(run, SKIPS); i++) {
    run->beta[i] = !model->spatial ? 0 : model->channel ? w[i] + 1 : 1;
    run->alpha[i] = !model->channel ? 1 : model->spatial ? w[i] : w[i] + 1;
  }
}

// ---- down and up

static void encode(Run *run) {
  const Network *network = run->network;
  const Model *model = &network->model;
  Planes features = {NULL, model->in_channels, run->height, run->width, 0};  // the picture
  for (int i = 0; i < SKIPS; i++) {
    const int rows = run_block(run, &network->encoder[i], features, true, run->skips[i]);
    group_norm(run, &model->encoder_norms[i], i ? 1.0f : run->scale, rows,
               features.height * features.width);
    run->depth = i;
    team_run(run->team, activate_task, run);
    // Its part of the bridge, while it is in the cache.
    if (model->spatial) team_run(run->team, spatial_attention_task, run);
    if (model->channel) team_run(run->team, channel_means_task, run);
    features = run->skips[i];
  }
  const Stage *last = &network->encoder[STAGES - 1];
  run_block(run, last, features, false, run->bottom);
  for (int c = 0; c < last->out_channels; c++) {
    run->factor[c] = 1;
    run->shift[c] = last->is_pvm ? 0 : last->bias[c];
  }
  run->depth = SKIPS;
  team_run(run->team, activate_task, run);
}

// ---- steps up

// Where the doubled row's values lie between those of a row of `width`: even ones between x - 1 and
// x, odd ones between x and x + 1. even, odd: shares of the neighbour.
static void doubling_shares(int width, float *even, float *odd) {
  for (int x = 0; x < width; x++) {
    even[x] = (float)x / (float)(2 * width - 1);
    odd[x] = (float)(width - 1 - x) / (float)(2 * width - 1);
  }
}

// A row twice as high: between rows y and y + 1 of `plane`, times factor plus shift.
INLINE void double_rows(const float *plane, int height, int width, int row, float factor,
                        float shift, float *line) {
  const int y = row * (height - 1) / (2 * height - 1);
  const float part =
      (float)(row * (height - 1) - y * (2 * height - 1)) / (float)(2 * height - 1);
  const float *upper = plane + (size_t)y * width;
  const float *lower = y + 1 < height ? upper + width : upper;
  for (int x = 0; x < width; x += WIDE) {
    const vec above = load(upper + x), below = load(lower + x);
    store(line + x, (above + part * (below - above)) * factor + shift);
  }
  line[-1] = 0;
  line[width] = 0;
}

// A row of `width` → the doubled row; `line` has a 0 on either side.
INLINE void double_columns(const float *line, int width, const float *even, const float *odd,
                           float *doubled) {
  for (int x = 0; x < width; x += WIDE) {
    const vec here = load(line + x);
    vec first, second;
    zip(here + load(even + x) * (load(line + x - 1) - here),
        here + load(odd + x) * (load(line + x + 1) - here), &first, &second);
    store(doubled + 2 * x, first);
    store(doubled + 2 * x + WIDE, second);
  }
}

// GELU of the normal features, at twice the size if `doubled`, plus the bridged skip; the last step
// goes on through the head.
static void merge_task(void *work, int thread, int threads) {
  Run *run = work;
  const Model *model = &run->network->model;
  const Planes in = run->in, skip = run->skips[run->depth];
  const int height = skip.height, width = skip.width, channels = skip.channels;
  const int room = up_to(width, WIDE) + 2 * WIDE;
  float *even = run->scratch + thread * run->thread_floats, *odd = even + room;
  float *lines = odd + room + WIDE;                 // (channels, room): a row of normal features,
  float *rows = lines + (size_t)channels * room;    // and doubled
  float *merged = rows + (size_t)channels * room;   // (channels, WIDE)
  memset(even, 0, (size_t)(2 + channels) * room * sizeof(float));
  doubling_shares(in.width, even, odd);
  const int at = first_channel(run, run->depth);
  const float *alphas = run->alpha + at, *betas = run->beta + at;
  int first, last;
  share(height, 1, thread, threads, &first, &last);
  for (int y = first; y < last; y++) {
    const size_t row = (size_t)y * width;
    for (int c = 0; c < channels; c++) {
      const float *plane = in.data + c * in.stride;
      float *line = lines + (size_t)c * room;
      if (run->doubled) {
        double_rows(plane, in.height, in.width, y, run->factor[c], run->shift[c], line);
      } else {
        for (int x = 0; x < width; x += WIDE) {
          store(line + x, load(plane + row + x) * run->factor[c] + run->shift[c]);
        }
      }
    }
    for (int c = 0; c < channels && run->doubled; c++) {
      double_columns(lines + (size_t)c * room, in.width, even, odd, rows + (size_t)c * room);
    }
    const float *features = run->doubled ? rows : lines;
    for (int x = 0; x < width; x += WIDE) {
      const float *t = skip.data + row + x;
      const vec map = load(run->spatial[run->depth] + row + x);
      for (int c = 0; c < channels; c++, t += skip.stride) {
        const vec weight = alphas[c] + betas[c] * map;
        store(merged + c * WIDE, gelu(load(features + (size_t)c * room + x)) + load(t) * weight);
      }
      if (run->is_last) {
        for (int k = 0; k < model->classes; k++) {
          vec logits = splat(model->head.bias[k]);
          for (int c = 0; c < channels; c++) {
            logits += model->head.weight[k * channels + c] * load(merged + c * WIDE);
          }
          store(run->logits + k * run->logits_stride + row + x, logits);
        }
        continue;
      }
      for (int c = 0; c < channels; c++) {
        float *to = run->out.data + c * run->out.stride + row + x;
        store_some(to, load(merged + c * WIDE), width - x);
      }
    }
  }
}

static void decode(Run *run) {
  const Network *network = run->network;
  Planes features = run->bottom;
  for (int i = 0; i < SKIPS; i++) {
    const Stage *stage = &network->decoder[i];
    Planes raw = run->raw;
    raw.channels = stage->out_channels;
    raw.height = features.height;
    raw.width = features.width;
    raw.stride = plane_stride(features.height, features.width);
    const int rows = run_block(run, stage, features, false, raw);
    group_norm(run, &network->model.decoder_norms[i], 1, rows, raw.height * raw.width);
    run->depth = SKIPS - 1 - i;
    run->doubled = i > 0;
    run->is_last = i == SKIPS - 1;
    run->in = raw;
    run->out = run->merged[run->depth];  // none after the last, which gives logits
    team_run(run->team, merge_task, run);
    features = run->out;
  }
}

// ---- the picture's size, probability

static void probability_task(void *work, int thread, int threads) {
  Run *run = work;
  const int classes = run->network->model.classes, height = run->height / 2, width = run->width / 2;
  float *scratch = run->scratch + thread * run->thread_floats;
  const int room = up_to(run->width, WIDE) + 2 * WIDE;
  float *even = scratch, *odd = scratch + room, *line = scratch + 2 * room + WIDE;
  float *doubled = scratch + 3 * room;
  memset(scratch, 0, (size_t)3 * room * sizeof(float));
  doubling_shares(width, even, odd);
  const size_t pixels = (size_t)run->height * run->width;
  vec check = {0};  // stays 0 if all logits are finite
  int first, last;
  share(run->height, 1, thread, threads, &first, &last);
  for (int y = first; y < last; y++) {
    float *row = run->probability + (size_t)y * run->width;
    for (int k = 0; k < classes; k++) {
      double_rows(run->logits + k * run->logits_stride, height, width, y, 1, 0, line);
      float *to = row + k * pixels;
      double_columns(line, width, even, odd, doubled);
      for (int x = 0; x < run->width; x += WIDE) {
        const vec logits = load(doubled + x);
        check += logits * 0.0f;
        store(to + x, classes == 1 ? sigmoid(logits) : logits);
      }
    }
    if (classes == 1) continue;
    for (int x = 0; x < run->width; x += WIDE) {  // softmax
      vec most = load(row + x), sum = {0};
      for (int k = 1; k < classes; k++) most = max_of(most, load(row + k * pixels + x));
      for (int k = 0; k < classes; k++) {
        const vec e = exp2_of(LOG2_E * (load(row + k * pixels + x) - most));
        store(row + k * pixels + x, e);
        sum += e;
      }
      for (int k = 0; k < classes; k++) {
        store(row + k * pixels + x, load(row + k * pixels + x) / sum);
      }
    }
  }
  for (int lane = 0; lane < WIDE; lane++) {
    if (!(check[lane] == 0)) __atomic_store_n(&run->finite, false, __ATOMIC_RELAXED);
  }
}

static size_t workspace(const void *packed, int height, int width, int threads) {
  Run run = {.network = packed, .threads = threads, .height = height, .width = width};
  Arena arena = {NULL, 0};
  lay_out(&run, &arena);
  return arena.used;
}

static int forward(const void *packed, Team *team, int threads, void *memory, const uint8_t *image,
                   int height, int width, float *probability) {
  Run run = {.network = packed, .team = team, .threads = threads, .height = height, .width = width,
             .image = image, .probability = probability, .finite = true};
  Arena arena = {memory, 0};
  lay_out(&run, &arena);
  normalise(&run);
  encode(&run);
  skip_bridge(&run);
  decode(&run);
  team_run(team, probability_task, &run);
  return run.finite ? ULVM_OK : ULVM_NOT_FINITE;
}

const Level NAME(LEVEL) = {TEXT(LEVEL), pack, workspace, forward};
