// The model's weights as network.c reads them: in vectors, signs turned, convolutions transformed.

#ifndef ULVM_PACK_H
#define ULVM_PACK_H

#include <math.h>
#include <string.h>

#include "convolution.h"
#include "network.h"

typedef struct {
  int in_channels, out_channels, group, inner, rank, states, branches;
  int side;                // branches in a token: `branches` up to a power of two
  int group_width, inner_width, x_width;  // floats of a token, multiples of WIDE
  float *norm_weight, *norm_bias;  // (in_channels)
  float *in_proj;          // (group, 2 · inner_width)
  float *conv_weight;      // (d_conv, inner_width)
  float *conv_bias;        // (inner_width)
  float *x_proj;           // (inner, x_width): rank, B, C
  float *dt_weight;        // (rank, inner_width)
  float *dt_bias, *D;      // (inner_width)
  float *A;                // (states, inner_width): of powers of two
  float *out_proj;         // (inner, group_width)
  float skip_scale;
  float *project;          // (out_channels / 4, in_channels, 4)
  float *project_bias;     // (out_channels)
} PVM;

typedef struct {
  bool is_pvm;
  int in_channels, out_channels;
  float *sign;             // (out_channels): -1 where the norm's weight is negative and it is pooled
  float *weights;          // of a convolution: transform_weights'
  float *bias;             // of a convolution: (out_channels)
  PVM pvm;
} Stage;

typedef struct {
  Model model;             // sizes, norms, bridge and head, whose weights are read as they are
  Stage encoder[STAGES], decoder[SKIPS];
} Network;

INLINE int up_to(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// Hands out parts of one block of memory; first without one, to count.
typedef struct {
  char *memory;
  size_t used;
} Arena;

static float *take(Arena *arena, size_t floats) {
  float *part = arena->memory ? (float *)(arena->memory + arena->used) : NULL;
  arena->used += (floats * sizeof(float) + 63) / 64 * 64;
  return part;
}

static void pack_pvm(const Model *model, const PVMWeights *from, const float *sign, Arena *arena,
                     PVM *p) {
  const int side = p->side, inner = p->inner, states = p->states, rank = p->rank;
  p->norm_weight = take(arena, p->in_channels);
  p->norm_bias = take(arena, p->in_channels);
  p->in_proj = take(arena, (size_t)p->group * 2 * p->inner_width);
  p->conv_weight = take(arena, (size_t)model->d_conv * p->inner_width);
  p->conv_bias = take(arena, p->inner_width);
  p->x_proj = take(arena, (size_t)inner * p->x_width);
  p->dt_weight = take(arena, (size_t)rank * p->inner_width);
  p->dt_bias = take(arena, p->inner_width);
  p->D = take(arena, p->inner_width);
  p->A = take(arena, (size_t)states * p->inner_width);
  p->out_proj = take(arena, (size_t)inner * p->group_width);
  p->project = take(arena, (size_t)p->out_channels * p->in_channels);
  p->project_bias = take(arena, p->out_channels);
  if (!arena->memory) return;

  memcpy(p->norm_weight, from->norm.weight, p->in_channels * sizeof(float));
  memcpy(p->norm_bias, from->norm.bias, p->in_channels * sizeof(float));
  p->skip_scale = from->skip_scale[0];
  for (int b = 0; b < p->branches; b++) {  // every weight once a branch
    for (int out = 0; out < inner; out++) {
      const int at = out * side + b;
      for (int k = 0; k < p->group; k++) {
        float *row = p->in_proj + (size_t)k * 2 * p->inner_width;
        row[at] = from->in_proj[out * p->group + k];
        row[p->inner_width + at] = from->in_proj[(inner + out) * p->group + k];
      }
      for (int k = 0; k < model->d_conv; k++) {
        p->conv_weight[k * p->inner_width + at] = from->conv.weight[out * model->d_conv + k];
      }
      for (int k = 0; k < rank; k++) {
        p->dt_weight[k * p->inner_width + at] = from->dt_proj.weight[out * rank + k];
      }
      for (int n = 0; n < model->d_state; n++) {
        p->A[n * p->inner_width + at] = -expf(from->A_log[out * model->d_state + n]) * LOG2_E;
      }
      p->conv_bias[at] = from->conv.bias[out];
      p->dt_bias[at] = from->dt_proj.bias[out];
      p->D[at] = from->D[out];
    }
    for (int k = 0; k < inner; k++) {
      float *row = p->x_proj + (size_t)k * p->x_width;
      for (int j = 0; j < rank; j++) row[j * side + b] = from->x_proj[j * inner + k];
      for (int n = 0; n < model->d_state; n++) {
        row[(rank + n) * side + b] = from->x_proj[(rank + n) * inner + k];
        row[(rank + states + n) * side + b] =
            from->x_proj[(rank + model->d_state + n) * inner + k];
      }
      for (int out = 0; out < p->group; out++) {
        p->out_proj[(size_t)k * p->group_width + out * side + b] = from->out_proj[out * inner + k];
      }
    }
  }
  for (int out = 0; out < p->out_channels; out++) {
    for (int k = 0; k < p->in_channels; k++) {
      p->project[((size_t)(out / 4) * p->in_channels + k) * 4 + out % 4] =
          from->project.weight[out * p->in_channels + k] * sign[out];
    }
    p->project_bias[out] = from->project.bias[out] * sign[out];
  }
}

static void pack_stage(const Model *model, const StageWeights *from, int in_channels,
                       int out_channels, const float *pooled_norm, Arena *arena, Stage *stage) {
  stage->is_pvm = from->is_pvm;
  stage->in_channels = in_channels;
  stage->out_channels = out_channels;
  stage->sign = take(arena, out_channels);
  if (arena->memory) {
    for (int i = 0; i < out_channels; i++) {
      stage->sign[i] = pooled_norm && pooled_norm[i] < 0 ? -1.0f : 1.0f;
    }
  }
  if (from->is_pvm) {
    PVM *p = &stage->pvm;
    p->in_channels = in_channels;
    p->out_channels = out_channels;
    p->branches = model->branches;
    for (p->side = 1; p->side < model->branches; p->side *= 2) continue;
    p->group = in_channels / model->branches;
    p->inner = model->expand * p->group;
    p->rank = (p->group + 15) / 16;
    p->states = up_to(model->d_state, 4);
    p->group_width = up_to(p->group * p->side, WIDE);
    p->inner_width = up_to(p->inner * p->side, WIDE);
    p->x_width = up_to((p->rank + 2 * p->states) * p->side, WIDE);
    pack_pvm(model, &from->pvm, stage->sign, arena, p);
    return;
  }
  stage->weights = take(arena, transformed_weights(in_channels, out_channels));
  stage->bias = take(arena, out_channels);
  if (!arena->memory) return;
  transform_weights(from->conv.weight, stage->sign, in_channels, out_channels, stage->weights);
  memcpy(stage->bias, from->conv.bias, out_channels * sizeof(float));
}

// The network and all its weights into the arena; counts them where it has no memory.
static void pack_network(const Model *model, Arena *arena) {
  Network counted, *network = (Network *)take(arena, (sizeof(Network) + 3) / 4);
  if (!network) network = &counted;
  network->model = *model;
  const int *widths = model->widths;
  for (int i = 0; i < STAGES; i++) {
    pack_stage(model, &model->encoder[i], i ? widths[i - 1] : model->in_channels, widths[i],
               i < SKIPS ? model->encoder_norms[i].weight : NULL, arena, &network->encoder[i]);
  }
  for (int i = 0; i < SKIPS; i++) {
    pack_stage(model, &model->decoder[i], widths[STAGES - 1 - i], widths[STAGES - 2 - i], NULL,
               arena, &network->decoder[i]);
  }
}

static void *pack(const Model *model) {
  Arena arena = {NULL, 0};
  pack_network(model, &arena);
  arena = (Arena){aligned_new(arena.used), 0};
  if (arena.memory) pack_network(model, &arena);
  return arena.memory;
}

#endif
