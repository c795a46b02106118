// The skip bridge: spatial attention of each skip, channel attention from the means of all.
//
// See nn/model.py SpatialAttention, ChannelAttention, SkipBridge.

#ifndef ULVM_BRIDGE_H
#define ULVM_BRIDGE_H

#include "run.h"

// Seven rows of sums take what a row of the maps from `first` to `last` adds to them.
INLINE void add_row(float *const maps[2], const float *weights, float *const sums[7], int width,
                    int first, int last) {
  for (int x = 0; x < width; x += WIDE) {
    vec total[7];
    UNROLL for (int k = 0; k < 7; k++) total[k] = load(sums[k] + x);
    for (int m = first; m < last; m++) {
      UNROLL for (int j = 0; j < 7; j++) {
        const vec value = load(maps[m] + x + 3 * j - 9);
        UNROLL for (int k = 0; k < 7; k++) total[k] += value * weights[m * 49 + k * 7 + j];
      }
    }
    UNROLL for (int k = 0; k < 7; k++) store(sums[k] + x, total[k]);
  }
}

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
        if (LANES == 16) {
          add_row(padded, conv->weight, rows_of_sums, width, 0, 2);
        } else {  // too few registers for both
          add_row(padded, conv->weight, rows_of_sums, width, 0, 1);
          add_row(padded, conv->weight, rows_of_sums, width, 1, 2);
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

#endif
