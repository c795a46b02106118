// The public functions on networks: opens, runs, closes.

#include <stdlib.h>
#include <string.h>

#include "network.h"

struct ulvm_engine {
  Model model;
  const Level *level;
  void *packed, *workspace;
  size_t workspace_bytes;
  int height, width;  // that the workspace is for
  int threads;
  Team *team;         // NULL for one thread
};

// ---- memory

void *aligned_new(size_t bytes) {
  if (bytes > SIZE_MAX - 128) return NULL;
  char *block = calloc(1, bytes + 64 + sizeof(void *));
  if (!block) return NULL;
  const uintptr_t start = ((uintptr_t)block + sizeof(void *) + 63) & ~(uintptr_t)63;
  ((void **)start)[-1] = block;
  return (void *)start;
}

void aligned_free(void *memory) {
  if (memory) free(((void **)memory)[-1]);
}

// ---- the interface

ulvm_engine *ulvm_open(const void *file, size_t bytes, int threads, ulvm_error *error) {
  if (error) *error = (ulvm_error){0};
  if (!file) {
    fail(error, ULVM_BAD_ARGUMENT, "No weights were given. Pass the bytes of a .safetensors file.");
    return NULL;
  }
  if (threads < 1 || threads > 16) {
    fail(error, ULVM_BAD_ARGUMENT, "threads=%d is out of range. Use 1 to 16.", threads);
    return NULL;
  }
  const Level *level = choose_level(error);
  if (!level) return NULL;
  ulvm_engine *engine = calloc(1, sizeof *engine);
  if (!engine) {
    fail(error, ULVM_NO_MEMORY, "There is no memory for the network. Close other programs.");
    return NULL;
  }
  engine->level = level;
  engine->threads = threads;
  if (model_read(file, bytes, &engine->model, error) != ULVM_OK) {
    free(engine);
    return NULL;
  }
  engine->packed = level->pack(&engine->model);
  if (!engine->packed) {
    fail(error, ULVM_NO_MEMORY, "There is no memory for the network. Close other programs.");
  } else if (threads > 1) {
    engine->team = team_open(threads, error);
  }
  if (!engine->packed || (threads > 1 && !engine->team)) {
    ulvm_close(engine);
    return NULL;
  }
  return engine;
}

enum { LARGEST_SIZE = 8192 };

static bool is_size(int side) { return side >= 32 && side <= LARGEST_SIZE && side % 32 == 0; }

int ulvm_run(ulvm_engine *engine, const uint8_t *image, int height, int width, float *probability,
             ulvm_error *error) {
  if (error) *error = (ulvm_error){0};
  if (!engine || !image || !probability) {
    return fail(error, ULVM_BAD_ARGUMENT, "The engine, picture or result is missing. Pass all three.");
  }
  if (!is_size(height) || !is_size(width)) {
    return fail(error, ULVM_BAD_ARGUMENT,
                "The picture is %d by %d pixels. Resize it to multiples of 32 up to %d.", height,
                width, (int)LARGEST_SIZE);
  }
  if (height != engine->height || width != engine->width) {
    const size_t bytes = engine->level->workspace(engine->packed, height, width, engine->threads);
    if (bytes > engine->workspace_bytes) {
      aligned_free(engine->workspace);
      engine->height = engine->width = 0;
      engine->workspace = aligned_new(bytes);
      engine->workspace_bytes = engine->workspace ? bytes : 0;
      if (!engine->workspace) {
        return fail(error, ULVM_NO_MEMORY,
                    "There is no memory for a picture of %d by %d pixels. Use a smaller one.",
                    height, width);
      }
    }
    engine->height = height;
    engine->width = width;
  }
  const int code = engine->level->forward(engine->packed, engine->team, engine->threads,
                                          engine->workspace, image, height, width, probability);
  if (code == ULVM_OK) return ULVM_OK;
  return fail(error, code, "The network gave no finite number. Check its weights, or train it again.");
}

void ulvm_close(ulvm_engine *engine) {
  if (!engine) return;
  if (engine->team) team_close(engine->team);
  aligned_free(engine->packed);
  aligned_free(engine->workspace);
  model_free(&engine->model);
  free(engine);
}

int ulvm_in_channels(const ulvm_engine *engine) { return engine ? engine->model.in_channels : 0; }
int ulvm_classes(const ulvm_engine *engine) { return engine ? engine->model.classes : 0; }
const char *ulvm_level(const ulvm_engine *engine) { return engine ? engine->level->name : ""; }
