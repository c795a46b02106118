// Resamples pictures and maps of odd sizes in memory of just their size. sanitize.py compiles it.

#include <stdlib.h>
#include <string.h>

#include "model.h"

static void require(bool holds) {
  if (!holds) abort();
}

// `count` bytes from the input, again and again.
static void *repeat(const uint8_t *input, size_t bytes, size_t count) {
  uint8_t *made = malloc(count);
  require(made);
  for (size_t i = 0; i < count; i++) made[i] = bytes ? input[i % bytes] : (uint8_t)i;
  return made;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes) {
  int sizes[4];
  if (bytes < 9) return 0;
  for (int i = 0; i < 4; i++) {
    sizes[i] = (input[2 * i] | input[2 * i + 1] << 8) % 66 - 1;  // -1 and 0 are refused
    if (input[8] >> i & 1) sizes[i] %= 8;
  }
  const int height = sizes[0], width = sizes[1], tall = sizes[2], wide = sizes[3];
  const int channels = 3 + (input[8] >> 4 & 1);
  const size_t from = (size_t)(height < 1 ? 1 : height) * (size_t)(width < 1 ? 1 : width);
  const size_t to = (size_t)(tall < 1 ? 1 : tall) * (size_t)(wide < 1 ? 1 : wide);
  const size_t between = (size_t)(height < 1 ? 1 : height) * (size_t)(wide < 1 ? 1 : wide);
  ulvm_error error = {0};

  uint8_t *pixels = repeat(input + 9, bytes - 9, from * (size_t)channels);
  uint8_t *narrow = malloc(between * 3), *image = malloc(to * 3);
  require(narrow && image);
  const bool sound = height > 0 && width > 0 && tall > 0 && wide > 0;
  int code = ulvm_resize_rows(pixels, height, width, channels, wide, narrow, &error);
  require(!code == (height > 0 && width > 0 && wide > 0));
  if (!code) {
    code = ulvm_resize_columns(narrow, height, wide, tall, image, &error);
    require(!code == (tall > 0));
  }
  free(image), free(narrow), free(pixels);

  float *probability = malloc(from * sizeof(float)), *resized = malloc(to * sizeof(float));
  uint8_t *mask = malloc(to);
  require(probability && resized && mask);
  for (size_t i = 0; i < from; i++) probability[i] = (float)input[i % bytes] / 255;
  int64_t area = -1, counted = 0;
  code = ulvm_resize_probability(probability, height, width, tall, wide, 0.5f, resized, mask, &area,
                                 &error);
  require(!code == sound);
  for (size_t i = 0; !code && i < to; i++) {
    require(resized[i] >= 0 && resized[i] < 1.001f && mask[i] == (resized[i] >= 0.5f));
    counted += mask[i];
  }
  require(code || area == counted);
  free(mask), free(resized), free(probability);
  return 0;
}
