// Between engine.c, which opens and chooses, and network.c, which is compiled once an instruction set.

#ifndef ULVM_NETWORK_H
#define ULVM_NETWORK_H

#include "model.h"

// The threads that share a picture. Each runs the task once, with its number of so many.
typedef struct Team Team;
typedef void Task(void *work, int thread, int threads);
Team *team_open(int threads, ulvm_error *error);  // NULL for an error; threads ≥ 2
void team_run(Team *team, Task *task, void *work);  // a NULL team is this thread alone
void team_close(Team *team);

// Memory at a multiple of 64 bytes, zeroed; NULL if there is none.
void *aligned_new(size_t bytes);
void aligned_free(void *memory);

// A network compiled for one instruction set.
typedef struct {
  const char *name;
  // The model's weights as this instruction set reads them; NULL if there is no memory.
  void *(*pack)(const Model *model);
  // Bytes of working memory for a picture of this size; 0 if they can't be counted.
  size_t (*workspace)(const void *packed, int height, int width, int threads);
  // ulvm_run on checked arguments; gives ULVM_OK or ULVM_NOT_FINITE.
  int (*forward)(const void *packed, Team *team, int threads, void *workspace, const uint8_t *image,
                 int height, int width, float *probability);
} Level;

extern const Level level_avx512, level_avx2, level_sse2, level_neon, level_wasm, level_plain;

// The best that this processor has, or the one that ULVM_LEVEL names; NULL for an error.
const Level *choose_level(ulvm_error *error);

#endif
