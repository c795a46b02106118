// What the weights file describes, between weights.c, which reads it, and network.c, which runs it.

#ifndef ULVM_MODEL_H
#define ULVM_MODEL_H

#include <stdbool.h>

#include "ulvm.h"

enum { STAGES = 6, SKIPS = STAGES - 1, LARGEST_WIDTH = 1024 };

// Tensors are float32, row-major, with torch's shapes; they point into memory that the model owns.
typedef struct {
  const float *weight, *bias;
} Affine;

typedef struct {
  Affine norm;                 // (channels), (channels)
  const float *in_proj;        // (2 * inner, group)
  Affine conv;                 // (inner, 1, d_conv), (inner)
  const float *x_proj;         // (dt_rank + 2 * d_state, inner)
  Affine dt_proj;              // (inner, dt_rank), (inner)
  const float *A_log;          // (inner, d_state)
  const float *D;              // (inner)
  const float *out_proj;       // (group, inner)
  const float *skip_scale;     // (1)
  Affine project;              // (out_channels, channels), (out_channels)
} PVMWeights;

typedef struct {
  bool is_pvm;
  Affine conv;                 // (out_channels, in_channels, 3, 3), (out_channels)
  PVMWeights pvm;
} StageWeights;

// ModelSpec's fields of the same names (spec.py), and the tensors of nn/model.py's modules.
typedef struct {
  int in_channels, classes, widths[STAGES];
  int branches, d_state, d_conv, expand;
  bool spatial, channel;       // which attentions the bridge has
  StageWeights encoder[STAGES], decoder[SKIPS];
  Affine encoder_norms[SKIPS], decoder_norms[SKIPS];
  Affine bridge_spatial;       // (1, 2, 7, 7), (1)
  const float *bridge_channel; // (1, 1, 3)
  Affine bridge_heads[SKIPS];  // (width, sum of skip widths), (width)
  Affine head;                 // (classes, widths[0], 1, 1), (classes)
  float *memory;               // all tensors, 64-byte aligned, one malloc
} Model;

// Reads and checks a safetensors file: header, metadata "ulvm" with the run's ModelSpec, every
// tensor's name, type, shape and finite values, no tensor left over.
int model_read(const void *file, size_t bytes, Model *model, ulvm_error *error);
void model_free(Model *model);

// Fills in `error` where it is not NULL, printf-like, and gives the code back.
int fail(ulvm_error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
