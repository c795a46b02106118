// The working memory of one picture, in one block, and how threads share it.

#ifndef ULVM_RUN_H
#define ULVM_RUN_H

#include "pack.h"

// Tokens that pass through a PVM layer together, a multiple of WIDE: few, to stay in a small cache;
// more where threads wait for each other after each step.
INLINE int chunk_of(int threads) { return threads > 1 ? 128 : 32; }
static const float EPSILON = 1e-5f;  // torch's, of both norms

typedef struct {
  float *x;                // (d_conv - 1 + chunk, inner_width), the first rows from the chunk before
  float *g, *out;          // (chunk, group_width)
  float *gate, *conv, *dt;      // (chunk, inner_width)
  float *y;                     // (states scanned apart from each other, chunk, inner_width)
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

  Planes picture;          // data only where the first stage is a PVM layer
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
  run->picture = (Planes){NULL, model->in_channels, height, width, 0};
  if (network->encoder[0].is_pvm) {
    run->picture = take_planes(arena, model->in_channels, height, width);
  }
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
  tokens->y = take(arena, (states + 3) / 4 * chunk * inner);
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

#endif
