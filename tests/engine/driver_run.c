// Runs the engine as a program would, for the sanitizers: driver_run WEIGHTS..., or, to show that a
// sanitizer sees it, `driver_run short WEIGHTS` (a result without room for its last value),
// `driver_run race WEIGHTS` (two threads use one engine at a time) and `driver_run unset WEIGHTS` (a
// picture that nobody wrote).

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ulvm.h"

typedef struct {
  ulvm_engine *engine;
  int height, width;
  size_t missing;      // bytes that the result's memory lacks
  int unset;           // whether nobody writes the picture
  float *probability;  // made by run
} Job;

static void require(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "driver_run: %s\n", what);
  exit(3);
}

static char *read_file(const char *name, size_t *bytes) {
  FILE *file = fopen(name, "rb");
  require(file != NULL, name);
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  char *content = malloc(*bytes);
  require(content && fread(content, 1, *bytes, file) == *bytes, name);
  fclose(file);
  return content;
}

static size_t count_values(const Job *job) {
  return (size_t)ulvm_classes(job->engine) * (size_t)job->height * (size_t)job->width;
}

static void *run(void *argument) {
  Job *job = argument;
  ulvm_error error;
  const size_t pixels = (size_t)job->height * (size_t)job->width * (size_t)ulvm_in_channels(job->engine);
  uint8_t *image = malloc(pixels);
  job->probability = malloc(count_values(job) * sizeof(float) - job->missing);
  require(image && job->probability, "no memory");
  for (size_t i = 0; i < pixels && !job->unset; i++) image[i] = (uint8_t)(i * 2654435761u >> 13);
  const int code = ulvm_run(job->engine, image, job->height, job->width, job->probability, &error);
  require(!code, error.sentence);
  free(image);
  return NULL;
}

static void run_both(Job *one, Job *other) {
  pthread_t thread;
  require(!pthread_create(&thread, NULL, run, one), "no thread");
  run(other);
  pthread_join(thread, NULL);
}

static ulvm_engine *open_engine(const char *name, int threads) {
  ulvm_error error;
  size_t bytes;
  char *weights = read_file(name, &bytes);
  ulvm_engine *engine = ulvm_open(weights, bytes, threads, &error);
  require(engine != NULL, error.sentence);
  free(weights);
  return engine;
}

// Every size by one thread, two, and two engines of two at once: always the same, bit by bit.
static void run_file(const char *name) {
  static const int sizes[][2] = {{32, 32}, {96, 160}, {256, 256}, {64, 32}, {32, 288}};
  ulvm_engine *one = open_engine(name, 1), *two = open_engine(name, 2), *other = open_engine(name, 2);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    const int height = sizes[i][0], width = sizes[i][1];
    Job alone = {one, height, width, 0, 0, NULL}, shared = {two, height, width, 0, 0, NULL};
    Job beside = {other, height, width, 0, 0, NULL};
    run(&alone);
    run_both(&shared, &beside);
    const size_t bytes = count_values(&alone) * sizeof(float);
    require(!memcmp(alone.probability, shared.probability, bytes) &&
                !memcmp(alone.probability, beside.probability, bytes),
            "threads change the result");
    free(alone.probability);
    free(shared.probability);
    free(beside.probability);
  }
  printf("%s %s\n", ulvm_level(two), name);
  fflush(stdout);
  ulvm_close(one);
  ulvm_close(two);
  ulvm_close(other);
}

// A photo of odd sizes to the network's size, and a map of probability back.
static void resize(int height, int width) {
  enum { SIDE = 64 };
  const size_t pixels = (size_t)height * (size_t)width;
  uint8_t *photo = malloc(pixels * 4), *narrow = malloc((size_t)height * SIDE * 3);
  uint8_t *image = malloc(SIDE * SIDE * 3), *mask = malloc(pixels);
  float *probability = malloc(SIDE * SIDE * sizeof(float)), *resized = malloc(pixels * sizeof(float));
  require(photo && narrow && image && mask && probability && resized, "no memory");
  for (size_t i = 0; i < pixels * 4; i++) photo[i] = (uint8_t)(i * 7);
  for (int i = 0; i < SIDE * SIDE; i++) probability[i] = (float)(i % SIDE) / SIDE;
  int64_t area;
  ulvm_error error;
  require(!ulvm_resize_rows(photo, height, width, 4, SIDE, narrow, &error) &&
              !ulvm_resize_columns(narrow, height, SIDE, SIDE, image, &error) &&
              !ulvm_resize_probability(probability, SIDE, SIDE, height, width, 0.5f, resized, mask,
                                       &area, &error),
          error.sentence);
  require(!ulvm_clean_probability(probability, SIDE, SIDE, 0.5f, probability, &error) &&
              !ulvm_clean_probability(resized, height, width, 0.5f, resized, &error),
          error.sentence);
  void *all[] = {photo, narrow, image, mask, probability, resized};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

int main(int count, char **words) {
  require(count > 1, "name a file of weights");
  const int is_short = !strcmp(words[1], "short"), is_race = !strcmp(words[1], "race");
  const int is_unset = !strcmp(words[1], "unset");
  if (is_short || is_race || is_unset) {
    require(count > 2, "name a file of weights");
    ulvm_engine *engine = open_engine(words[2], 1);
    Job job = {engine, 64, 64, is_short, is_unset, NULL}, same = job;
    if (is_race) {
      run_both(&job, &same);
      free(same.probability);
    } else {
      run(&job);
    }
    free(job.probability);
    ulvm_close(engine);
    return 0;
  }
  for (int i = 1; i < count; i++) run_file(words[i]);
  resize(1, 1);
  resize(97, 501);
  resize(640, 33);
  return 0;
}
