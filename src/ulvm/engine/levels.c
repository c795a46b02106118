// Which instruction set: by what the processor has, once.

#include <stdlib.h>
#include <string.h>

#include "network.h"

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

// The one of this name, if this processor has it, else NULL.
static const Level *find_level(const char *name) {
  const Level *best = best_level();
  for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
    if (!strcmp(name, levels[i]->name)) return levels[i];
    if (levels[i] == best) break;
  }
  return NULL;
}

const Level *choose_level(ulvm_error *error) {
#if defined(__wasm__)  // a page has no environment
  const char *name = NULL;
#else
  const char *name = getenv("ULVM_LEVEL");
#endif
  if (!name || !*name) return best_level();
  const Level *level = find_level(name);
  if (!level) {
    fail(error, ULVM_BAD_ARGUMENT,
         "This processor has no ULVM_LEVEL=%.32s. Use %s or unset the variable.", name,
         best_level()->name);
  }
  return level;
}
