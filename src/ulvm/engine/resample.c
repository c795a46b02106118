// Pillow's bilinear resampling, as ulvm.image does it with Pillow itself: it averages when
// shrinking, takes half-pixel centres, and computes pictures in whole numbers, columns first, then
// rows.
// Source: Pillow, src/libImaging/Resample.c.
// Differs: some versions of Pillow do the rows of some tall pictures first; a value may then differ
// by 1. Probabilities are summed in float32, not in float64.

#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { PRECISION_BITS = 22, HALF = 1 << (PRECISION_BITS - 1), LARGEST_SIDE = 1 << 20 };

// How one side is resampled: output o is the sum over t < count[o] of
// weights[o * taps + t] * input[first[o] + t].
typedef struct {
  int taps;
  int *first, *count;  // (out)
  float *weights;      // (out, taps); their sum is 1
  int32_t *fixed;      // (out, taps); the same times 2^22
} Kernel;

static void kernel_free(Kernel *kernel) {
  free(kernel->first);
  free(kernel->count);
  free(kernel->weights);
  free(kernel->fixed);
}

// malloc of count * size bytes that the machine can address, else NULL.
static void *allocate(uint64_t count, size_t size) {
  return count <= SIZE_MAX / size ? malloc((size_t)count * size) : NULL;
}

// Gives false where memory is short; kernel_free is called in both cases.
static bool kernel_make(Kernel *kernel, int in, int out) {
  double scale = (double)in / out, support = scale > 1 ? scale : 1;
  int taps = 2 * (int)support + 3;
  uint64_t weights = (uint64_t)out * (uint64_t)taps;
  *kernel = (Kernel){
      .taps = taps,
      .first = allocate((uint64_t)out, sizeof(int)),
      .count = allocate((uint64_t)out, sizeof(int)),
      .weights = allocate(weights, sizeof(float)),
      .fixed = allocate(weights, sizeof(int32_t)),
  };
  double *row = allocate((uint64_t)taps, sizeof(double));
  bool made = row && kernel->first && kernel->count && kernel->weights && kernel->fixed;
  for (int o = 0; made && o < out; o++) {
    double center = (o + 0.5) * scale, sum = 0;
    int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
    if (first < 0) first = 0;
    if (end > in) end = in;
    for (int t = 0; t < end - first; t++) {
      double distance = (first + t - center + 0.5) / support;
      row[t] = distance < 0 ? 1 + distance : 1 - distance;
      if (row[t] < 0) row[t] = 0;
      sum += row[t];
    }
    for (int t = 0; t < end - first; t++) {
      size_t at = (size_t)o * (size_t)taps + (size_t)t;
      kernel->weights[at] = (float)(row[t] / sum);
      kernel->fixed[at] = (int32_t)(row[t] / sum * (1 << PRECISION_BITS) + 0.5);
    }
    kernel->first[o] = first;
    kernel->count[o] = end - first;
  }
  free(row);
  return made;
}

static bool is_side(int pixels) { return pixels >= 1 && pixels <= LARGEST_SIDE; }

static int bad_side(ulvm_error *error) {
  return fail(error, ULVM_BAD_ARGUMENT,
              "A picture has sides of 1 to %d pixels. Give a picture of such a size.",
              (int)LARGEST_SIDE);
}

static int no_memory(ulvm_error *error) {
  return fail(error, ULVM_NO_MEMORY,
              "There is not enough memory to resize the picture. Close other programs or take a "
              "smaller picture.");
}

static int no_pixels(ulvm_error *error) {
  return fail(error, ULVM_BAD_ARGUMENT, "The pixels are missing. Give a picture.");
}

// A sum that began with a half → 0..255. Of very many weights, each rounded, it may be larger.
static uint8_t rounded(uint32_t sum) {
  return sum >> PRECISION_BITS > 255 ? 255 : (uint8_t)(sum >> PRECISION_BITS);
}

// One row of pixels → one narrow row. Red and blue share a 64-bit product: neither sum reaches 2^32.
static void narrow_row(const uint8_t *pixels, int channels, const Kernel *kernel, int out_width,
                       uint8_t *narrow) {
  for (int o = 0; o < out_width; o++) {
    const uint8_t *pixel = pixels + (size_t)kernel->first[o] * (size_t)channels;
    const int32_t *weights = kernel->fixed + (size_t)o * (size_t)kernel->taps;
    uint64_t red_blue = (uint64_t)HALF << 32 | HALF;
    uint32_t green = HALF;
    for (int t = 0; t < kernel->count[o]; t++, pixel += channels) {
      red_blue += ((uint64_t)pixel[0] << 32 | pixel[2]) * (uint32_t)weights[t];
      green += (uint32_t)pixel[1] * (uint32_t)weights[t];
    }
    narrow[3 * o] = rounded((uint32_t)(red_blue >> 32));
    narrow[3 * o + 1] = rounded(green);
    narrow[3 * o + 2] = rounded((uint32_t)red_blue);
  }
}

int ulvm_resize_rows(const uint8_t *pixels, int rows, int width, int channels, int out_width,
                     uint8_t *narrow, ulvm_error *error) {
  if (!pixels || !narrow) return no_pixels(error);
  if (!is_side(rows) || !is_side(width) || !is_side(out_width)) return bad_side(error);
  if (channels != 3 && channels != 4) {
    return fail(error, ULVM_BAD_ARGUMENT,
                "A picture of %d channels was given. Give 3 (RGB) or 4 (RGB and one passed over).",
                channels);
  }
  Kernel kernel;
  bool made = kernel_make(&kernel, width, out_width);
  for (int y = 0; made && y < rows; y++) {
    const uint8_t *row = pixels + (size_t)y * (size_t)width * (size_t)channels;
    uint8_t *to = narrow + (size_t)y * (size_t)out_width * 3;
    // The compiler makes a loop for each.
    if (channels == 3) narrow_row(row, 3, &kernel, out_width, to);
    else narrow_row(row, 4, &kernel, out_width, to);
  }
  kernel_free(&kernel);
  return made ? ULVM_OK : no_memory(error);
}

int ulvm_resize_columns(const uint8_t *narrow, int height, int width, int out_height,
                        uint8_t *image, ulvm_error *error) {
  if (!narrow || !image) return no_pixels(error);
  if (!is_side(height) || !is_side(width) || !is_side(out_height)) return bad_side(error);
  size_t length = (size_t)width * 3;
  Kernel kernel;
  uint32_t *sums = allocate(length, sizeof(uint32_t));
  bool made = kernel_make(&kernel, height, out_height) && sums;
  for (int o = 0; made && o < out_height; o++) {
    for (size_t x = 0; x < length; x++) sums[x] = HALF;
    for (int t = 0; t < kernel.count[o]; t++) {
      const uint8_t *from = narrow + (size_t)(kernel.first[o] + t) * length;
      uint32_t weight = (uint32_t)kernel.fixed[(size_t)o * (size_t)kernel.taps + (size_t)t];
      for (size_t x = 0; x < length; x++) sums[x] += from[x] * weight;
    }
    uint8_t *to = image + (size_t)o * length;
    for (size_t x = 0; x < length; x++) to[x] = rounded(sums[x]);
  }
  free(sums);
  kernel_free(&kernel);
  return made ? ULVM_OK : no_memory(error);
}

// One row of probability → some columns of a wide row.
static void widen_row(const float *probability, const Kernel *kernel, int begin, int end,
                      float *wide) {
  for (int o = begin; o < end; o++) {
    const float *from = probability + kernel->first[o];
    const float *weights = kernel->weights + (size_t)o * (size_t)kernel->taps;
    float sum = 0;
    for (int t = 0; t < kernel->count[o]; t++) sum += from[t] * weights[t];
    wide[o - begin] = sum;
  }
}

// One row of the resized probability → one row of the mask. Gives its pixels.
static int64_t mask_row(const float *resized, int width, float threshold, uint8_t *mask) {
  int64_t area = 0;
  for (int x = 0; x < width; x++) mask[x] = resized[x] >= threshold;
  for (int begin = 0; begin < width; begin += 255) {  // as many ones as a byte can count
    int end = width - begin > 255 ? begin + 255 : width;
    uint8_t sum = 0;
    for (int x = begin; x < end; x++) sum = (uint8_t)(sum + mask[x]);
    area += sum;
  }
  return area;
}

int ulvm_resize_probability(const float *probability, int height, int width, int out_height,
                            int out_width, float threshold, float *resized, uint8_t *mask,
                            int64_t *area, ulvm_error *error) {
  if (!probability) return no_pixels(error);
  if (!is_side(height) || !is_side(width) || !is_side(out_height) || !is_side(out_width)) {
    return bad_side(error);
  }
  Kernel across, down;
  bool made = kernel_make(&across, width, out_width);
  made = kernel_make(&down, height, out_height) && made;
  // As many columns at once as take 16 MiB: all, but of a picture that is very wide and low.
  int columns = (1 << 22) / down.taps < 4096 ? 4096 : (1 << 22) / down.taps;
  if (columns > out_width) columns = out_width;
  // The last `down.taps` rows at their new width, input row y at y % down.taps.
  size_t length = (size_t)columns;
  float *wide = made ? allocate((uint64_t)down.taps * length, sizeof(float)) : NULL;
  float *row = allocate(length, sizeof(float));
  uint8_t *mask_line = allocate(length, 1);
  made = made && wide && row && mask_line;
  int64_t sum = 0;
  for (int begin = 0; made && begin < out_width; begin += columns) {
    int end = out_width - begin < columns ? out_width : begin + columns;
    size_t used = (size_t)(end - begin);
    for (int o = 0, ready = 0; o < out_height; o++) {
      int first = down.first[o], count = down.count[o];
      for (; ready < first + count; ready++) {
        widen_row(probability + (size_t)ready * (size_t)width, &across, begin, end,
                  wide + (size_t)(ready % down.taps) * length);
      }
      const float *weights = down.weights + (size_t)o * (size_t)down.taps;
      size_t at = (size_t)o * (size_t)out_width + (size_t)begin;
      float *to = resized ? resized + at : row;
      for (int t = 0; t < count; t++) {
        const float *from = wide + (size_t)((first + t) % down.taps) * length;
        float weight = weights[t];
        if (t == 0) for (size_t x = 0; x < used; x++) to[x] = from[x] * weight;
        else for (size_t x = 0; x < used; x++) to[x] += from[x] * weight;
      }
      if (mask || area) sum += mask_row(to, end - begin, threshold, mask ? mask + at : mask_line);
    }
  }
  if (made && area) *area = sum;
  free(mask_line);
  free(row);
  free(wide);
  kernel_free(&down);
  kernel_free(&across);
  return made ? ULVM_OK : no_memory(error);
}
