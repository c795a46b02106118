// Reads what libFuzzer thinks up, as it is and as a header, a line's end and data that get the right
// length in front, so that what it changes in the header goes deeper. sanitize.py compiles it.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static void require(bool holds) {
  if (!holds) abort();
}

static void require_finite(const float *values, int count) {
  for (int i = 0; i < count; i++) require(isfinite(values[i]));
}

static void read_once(const uint8_t *file, size_t bytes) {
  Model model;
  ulvm_error error = {0};
  const int code = model_read(file, bytes, &model, &error);
  require(code == error.code && memchr(error.sentence, 0, sizeof error.sentence));
  require(code ? !model.memory && strlen(error.sentence) > 20 : !*error.sentence);
  if (!code) {
    require(model.widths[0] >= 4 && model.widths[0] <= LARGEST_WIDTH && model.classes >= 1);
    require_finite(model.head.weight, model.classes * model.widths[0]);
    require_finite(model.encoder_norms[SKIPS - 1].bias, model.widths[SKIPS - 1]);
    if (model.encoder[5].is_pvm) {
      const int group = model.widths[4] / model.branches;
      require_finite(model.encoder[5].pvm.A_log, model.expand * group * model.d_state);
    }
  }
  model_free(&model);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes) {
  read_once(input, bytes);
  const uint8_t *line = bytes ? memchr(input, '\n', bytes) : NULL;
  const uint64_t header = line ? (uint64_t)(line - input) : bytes;
  const size_t data = bytes - (size_t)header - (line != NULL);
  uint8_t *file = malloc(sizeof header + bytes);
  require(file);
  memcpy(file, &header, sizeof header);
  memcpy(file + sizeof header, input, (size_t)header);
  if (data) memcpy(file + sizeof header + header, line + 1, data);
  uint8_t *exact = realloc(file, sizeof header + (size_t)header + data);
  require(exact);
  read_once(exact, sizeof header + (size_t)header + data);
  free(exact);
  return 0;
}
