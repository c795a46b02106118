// Runs one picture: run_once WEIGHTS IMAGE HEIGHT WIDTH THREADS PROBABILITY. For machines without
// Python, such as an emulated one.

#include <stdio.h>
#include <stdlib.h>

#include "ulvm.h"

static char *read_file(const char *name, size_t *bytes) {
  FILE *file = fopen(name, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  char *content = malloc(*bytes);
  if (!content || fread(content, 1, *bytes, file) != *bytes) exit(2);
  fclose(file);
  return content;
}

int main(int count, char **words) {
  if (count != 7) return 2;
  size_t weights_bytes, image_bytes;
  char *weights = read_file(words[1], &weights_bytes);
  char *image = read_file(words[2], &image_bytes);
  int height = atoi(words[3]), width = atoi(words[4]);
  ulvm_error error;
  ulvm_engine *engine = ulvm_open(weights, weights_bytes, atoi(words[5]), &error);
  if (!engine) {
    fprintf(stderr, "%s\n", error.sentence);
    return 1;
  }
  size_t values = (size_t)ulvm_classes(engine) * (size_t)height * (size_t)width;
  float *probability = malloc(values * sizeof(float));
  if (!probability) return 2;
  if (ulvm_run(engine, (const uint8_t *)image, height, width, probability, &error)) {
    fprintf(stderr, "%s\n", error.sentence);
    return 1;
  }
  FILE *file = fopen(words[6], "wb");
  if (!file || fwrite(probability, sizeof(float), values, file) != values) return 2;
  fclose(file);
  puts(ulvm_level(engine));
  ulvm_close(engine);
  free(probability);
  free(image);
  free(weights);
  return 0;
}
