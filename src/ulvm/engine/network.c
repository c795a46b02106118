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

#include "bridge.h"
#include "pvm.h"

#define NAME_(level) level_##level
#define NAME(level) NAME_(level)
#define TEXT_(level) #level
#define TEXT(level) TEXT_(level)

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

// The whole picture, 0..255, for a first stage that is no convolution.
static void read_picture(const Run *run, Planes picture) {
  const int width = run->width, channels = picture.channels;
  for (int y = 0; y < run->height; y++) {
    read_row(run->image + (size_t)y * width * channels, width, channels, run->low,
             picture.data + (size_t)y * width, picture.stride);
  }
  for (size_t i = 0; i < picture.stride * channels; i++) picture.data[i] *= run->scale;
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
    // An infinite variance, which would make all values alike, becomes what is not a number.
    const double deviation = sqrt((variance > 0 ? variance : 0) + variance * 0 + (double)EPSILON);
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

// ---- down and up

static void encode(Run *run) {
  const Network *network = run->network;
  const Model *model = &network->model;
  Planes features = run->picture;  // without data where it is read row by row
  if (features.data) read_picture(run, features);
  const float scale = features.data ? 1 : run->scale;
  for (int i = 0; i < SKIPS; i++) {
    const int rows = run_block(run, &network->encoder[i], features, true, run->skips[i]);
    group_norm(run, &model->encoder_norms[i], i ? 1 : scale, rows,
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
  const bool is_single = run->is_last && model->classes == 1;
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
      vec logits = splat(model->head.bias[0]);
      for (int c = 0; c < channels; c++, t += skip.stride) {
        const vec weight = alphas[c] + betas[c] * map;
        const vec value = gelu(load(features + (size_t)c * room + x)) + load(t) * weight;
        if (run->is_last) logits += model->head.weight[c] * value;
        if (!is_single) store(merged + c * WIDE, value);
      }
      if (run->is_last) {
        store(run->logits + row + x, logits);
        for (int k = 1; k < model->classes; k++) {
          logits = splat(model->head.bias[k]);
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
