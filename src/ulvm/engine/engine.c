// The public functions on networks: opens, chooses the instruction set, shares the work by threads.

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

// ---- which instruction set

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

// The registers' state that the operating system keeps for a process.
static uint64_t kept_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

// By cpuid, for compilers' own questions may be wrong under another compiler's runtime.
static const Level *best_level(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return &level_sse2;
  const bool fma = c & (1u << 12), osxsave = c & (1u << 27), avx = c & (1u << 28);
  const bool f16c = c & (1u << 29), movbe = c & (1u << 22);
  if (!fma || !osxsave || !avx || !f16c || !movbe || (kept_state() & 0x6) != 0x6) return &level_sse2;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return &level_sse2;
  const uint32_t avx2 = 1u << 5 | 1u << 3 | 1u << 8;              // AVX2, BMI1, BMI2
  const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // F DQ CD BW VL
  uint32_t extended, lzcnt;
  if (!__get_cpuid(0x80000001, &extended, &extended, &lzcnt, &extended)) return &level_sse2;
  if ((b & avx2) != avx2 || !(lzcnt & (1u << 5))) return &level_sse2;
  return (b & avx512) == avx512 && (kept_state() & 0xe6) == 0xe6 ? &level_avx512 : &level_avx2;
}

static const Level *const levels[] = {&level_sse2, &level_avx2, &level_avx512};  // each has those before
#elif defined(__aarch64__) || defined(_M_ARM64)
static const Level *best_level(void) { return &level_neon; }
static const Level *const levels[] = {&level_neon};
#elif defined(__wasm__)
static const Level *best_level(void) { return &level_wasm; }
static const Level *const levels[] = {&level_wasm};
#else
static const Level *best_level(void) { return &level_plain; }
static const Level *const levels[] = {&level_plain};
#endif

// The level that ULVM_LEVEL names, else the best; NULL where this processor hasn't the named one.
static const Level *choose_level(const char *name) {
  const Level *best = best_level();
  if (!name || !*name) return best;
  for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
    if (!strcmp(name, levels[i]->name)) return levels[i];
    if (levels[i] == best) break;
  }
  return NULL;
}

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
#if defined(__wasm__)  // a page has no environment
  const char *name = NULL;
#else
  const char *name = getenv("ULVM_LEVEL");
#endif
  const Level *level = choose_level(name);
  if (!level) {
    fail(error, ULVM_BAD_ARGUMENT,
         "This processor has no ULVM_LEVEL=%.32s. Use %s or unset the variable.", name,
         best_level()->name);
    return NULL;
  }
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

int ulvm_run(ulvm_engine *engine, const uint8_t *image, int height, int width, float *probability,
             ulvm_error *error) {
  if (error) *error = (ulvm_error){0};
  if (!engine || !image || !probability) {
    return fail(error, ULVM_BAD_ARGUMENT, "The engine, picture or result is missing. Pass all three.");
  }
  const int largest = 8192;
  if (height < 32 || width < 32 || height % 32 || width % 32 || height > largest || width > largest) {
    return fail(error, ULVM_BAD_ARGUMENT,
                "The picture is %d by %d pixels. Resize it to multiples of 32 up to %d.", height,
                width, largest);
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

int ulvm_in_channels(const ulvm_engine *engine) { return engine->model.in_channels; }
int ulvm_classes(const ulvm_engine *engine) { return engine->model.classes; }
const char *ulvm_level(const ulvm_engine *engine) { return engine->level->name; }
