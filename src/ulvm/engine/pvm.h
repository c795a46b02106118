// The PVM layer: LayerNorm, one Mamba for all branches side by side, LayerNorm, Linear.
//
// A chunk of tokens passes through together: what is done token by token, the scan along the tokens,
// and again what is done token by token. See nn/model.py PVMLayer, Mamba, SelectiveScan.

#ifndef ULVM_PVM_H
#define ULVM_PVM_H

#include "run.h"

// `side` values of one channel of a token, one a branch, over and over: lanes of vector v.
INLINE vec load_branches(const float *from, int side, int v) {
  if (side == 4) return load_four(from);
  vec values;
  for (int lane = 0; lane < WIDE; lane++) values[lane] = from[(v * WIDE + lane) & (side - 1)];
  return values;
}

// So many tokens and vectors of their outputs are summed up at once, in registers.
#if LANES == 16
enum { TOKENS_AT_ONCE = 4, VECTORS_AT_ONCE = 3, STATES_AT_ONCE = 16 };
#elif LANES == 8
enum { TOKENS_AT_ONCE = 2, VECTORS_AT_ONCE = 3, STATES_AT_ONCE = 8 };
#else
enum { TOKENS_AT_ONCE = 2, VECTORS_AT_ONCE = 1, STATES_AT_ONCE = 4 };
#endif

INLINE void multiply_block(const float *tokens, size_t in_width, int side, int depth,
                           const float *weights, size_t width, int v, int vectors, float *out,
                           size_t out_width) {
  vec sums[TOKENS_AT_ONCE][VECTORS_AT_ONCE];
  UNROLL for (int t = 0; t < TOKENS_AT_ONCE; t++) {
    UNROLL for (int i = 0; i < vectors; i++) sums[t][i] = (vec){0};
  }
  for (int k = 0; k < depth; k++) {
    vec w[VECTORS_AT_ONCE];
    UNROLL for (int i = 0; i < vectors; i++) w[i] = load(weights + k * width + (v + i) * WIDE);
    UNROLL for (int t = 0; t < TOKENS_AT_ONCE; t++) {
      UNROLL for (int i = 0; i < vectors; i++) {
        sums[t][i] += load_branches(tokens + t * in_width + k * side, side, v + i) * w[i];
      }
    }
  }
  UNROLL for (int t = 0; t < TOKENS_AT_ONCE; t++) {
    UNROLL for (int i = 0; i < vectors; i++) store(out + t * out_width + (v + i) * WIDE, sums[t][i]);
  }
}

// tokens (…, depth · side) by weights (depth, width) → out (…, out_width), from token `first` to
// `last`, a multiple of 4. used: floats of a row of `out` that are wanted.
INLINE void multiply_tokens(const float *tokens, size_t in_width, int side, int depth,
                            const float *weights, size_t width, int used, float *out,
                            size_t out_width, int first, int last) {
  const int vectors = (used + WIDE - 1) / WIDE;
  for (int t = first; t < last; t += TOKENS_AT_ONCE) {
    const float *in = tokens + t * in_width;
    float *to = out + t * out_width;
    int v = 0;
    for (; v + VECTORS_AT_ONCE <= vectors; v += VECTORS_AT_ONCE) {
      multiply_block(in, in_width, side, depth, weights, width, v, VECTORS_AT_ONCE, to, out_width);
    }
    for (; v < vectors; v++) {
      multiply_block(in, in_width, side, depth, weights, width, v, 1, to, out_width);
    }
  }
}

// LayerNorm of 16 tokens: their channels → normal values, both (in_channels, WIDE).
INLINE void layer_norm(const PVM *p, float *channels) {
  vec mean = {0}, variance = {0};
  for (int c = 0; c < p->in_channels; c++) mean += load(channels + c * WIDE);
  mean /= (float)p->in_channels;
  for (int c = 0; c < p->in_channels; c++) {
    const vec d = load(channels + c * WIDE) - mean;
    variance += d * d;
  }
  float factors[WIDE];
  variance += variance * 0;  // an infinite one, which would make all values alike, is not a number
  store(factors, variance / (float)p->in_channels + EPSILON);
  for (int lane = 0; lane < WIDE; lane++) factors[lane] = 1.0f / sqrtf(factors[lane]);
  const vec factor = load(factors);
  for (int c = 0; c < p->in_channels; c++) {
    const vec normal = (load(channels + c * WIDE) - mean) * factor;
    store(channels + c * WIDE, normal * p->norm_weight[c] + p->norm_bias[c]);
  }
}

// Between (in_channels, WIDE) and (WIDE, group_width), by channel of the group and branch.
INLINE void move_tokens(const PVM *p, float *channels, float *tokens, bool to_tokens) {
  for (int k = 0; k < p->group; k++) {
    if (p->side == 4 && p->branches == 4) {
      vec branches[4], quarters[4];
      if (to_tokens) {
        for (int b = 0; b < 4; b++) branches[b] = load(channels + (b * p->group + k) * WIDE);
        transpose_quarters(branches, quarters);
      }
      UNROLL for (int t = 0; t < WIDE; t++) {
        float *values = (float *)&quarters[t % 4] + t / 4 * 4;
        float *token = tokens + t * p->group_width + k * 4;
        memcpy(to_tokens ? token : values, to_tokens ? values : token, 4 * sizeof(float));
      }
      if (to_tokens) continue;
      transpose_quarters(quarters, branches);
      for (int b = 0; b < 4; b++) store(channels + (b * p->group + k) * WIDE, branches[b]);
      continue;
    }
    for (int b = 0; b < p->branches; b++) {
      for (int t = 0; t < WIDE; t++) {
        float *token = tokens + t * p->group_width + k * p->side + b;
        float *channel = channels + (b * p->group + k) * WIDE + t;
        if (to_tokens) *token = *channel;
        else *channel = *token;
      }
    }
  }
}

// All of a chunk that is done token by token before the scan.
INLINE void before_scan(Run *run, const PVM *p, int side, float *scratch, int first, int last) {
  const Tokens *tokens = &run->tokens;
  const int inner = p->inner_width, d_conv = run->network->model.d_conv;
  float *x = tokens->x + (size_t)(d_conv - 1) * inner;
  for (int t = first; t < last; t += WIDE) {
    for (int c = 0; c < p->in_channels; c++) {
      const float *from = run->in.data + c * run->in.stride + run->first_token + t;
      store(scratch + c * WIDE, load(from));
    }
    layer_norm(p, scratch);
    move_tokens(p, scratch, tokens->g + (size_t)t * p->group_width, true);
  }
  multiply_tokens(tokens->g, p->group_width, side, p->group, p->in_proj, 2 * inner,
                  p->inner * p->side, x, inner, first, last);
  multiply_tokens(tokens->g, p->group_width, side, p->group, p->in_proj + inner, 2 * inner,
                  p->inner * p->side, tokens->gate, inner, first, last);
}

INLINE void after_conv(Run *run, const PVM *p, int side, float *scratch, int first, int last) {
  (void)scratch;
  const Tokens *tokens = &run->tokens;
  const int inner = p->inner_width, d_conv = run->network->model.d_conv;
  for (int t = first; t < last; t++) {
    for (int i = 0; i < inner; i += WIDE) {
      vec sum = load(p->conv_bias + i);
      for (int k = 0; k < d_conv; k++) {  // causal: row t + k holds token t + k - (d_conv - 1)
        sum += load(tokens->x + (size_t)(t + k) * inner + i) * load(p->conv_weight + k * inner + i);
      }
      store(tokens->conv + (size_t)t * inner + i, silu(sum));
      float *gate = tokens->gate + (size_t)t * inner + i;
      store(gate, silu(load(gate)));
    }
  }
  multiply_tokens(tokens->conv, inner, side, p->inner, p->x_proj, p->x_width,
                  (p->rank + 2 * p->states) * p->side, tokens->x_proj, p->x_width, first, last);
  for (int t = first; t < last; t++) {
    for (int i = 0; i < inner; i += WIDE) {
      vec sum = load(p->dt_bias + i);
      for (int k = 0; k < p->rank; k++) {
        const float *rank = tokens->x_proj + (size_t)t * p->x_width + k * side;
        sum += load_branches(rank, side, i / WIDE) * load(p->dt_weight + k * inner + i);
      }
      store(tokens->dt + (size_t)t * inner + i, softplus(sum));
    }
  }
}

// How many states of one vector of (channel, branch) are scanned together: as many as registers hold
// and all have; where threads share them, at most 8, for then the parts are of one size.
INLINE int states_at_once(const Run *run, const PVM *p) {
  if (STATES_AT_ONCE == 16 && run->threads == 1 && p->states == 16) return 16;
  return STATES_AT_ONCE >= 8 && p->states % 8 == 0 ? 8 : 4;
}

// state = exp(dt · A) · state + dt · B · x, y = C · state, along the chunk, for some states of one
// vector of (channel, branch); the first of them add D · x.
INLINE void selective_scan(const Run *run, const PVM *p, int side, int i, int first_state, int states,
                           float *y) {
  const Tokens *tokens = &run->tokens;
  const int inner = p->inner_width;
  vec state[16], A[16];
  UNROLL for (int n = 0; n < states; n++) {
    state[n] = load(tokens->state + (size_t)(first_state + n) * inner + i);
    A[n] = load(p->A + (size_t)(first_state + n) * inner + i);
  }
  const vec D = first_state ? splat(0) : load(p->D + i);
  for (int t = 0; t < run->count; t++) {
    const size_t at = (size_t)t * inner + i;
    const float *B = tokens->x_proj + (size_t)t * p->x_width + (p->rank + first_state) * side;
    const float *C = B + p->states * side;
    const vec dt = load(tokens->dt + at), x = load(tokens->conv + at), dx = dt * x;
    vec sums[2] = {D * x, {0}};
    UNROLL for (int n = 0; n < states; n++) {
      const vec decay = exp2_falling(dt, A[n]);
      state[n] = decay * state[n] + dx * load_branches(B + n * side, side, i / WIDE);
      sums[n / 8] += load_branches(C + n * side, side, i / WIDE) * state[n];
    }
    store(y + at, states > 8 ? sums[0] + sums[1] : sums[0]);
  }
  UNROLL for (int n = 0; n < states; n++) {
    store(tokens->state + (size_t)(first_state + n) * inner + i, state[n]);
  }
}

INLINE void after_scan(Run *run, const PVM *p, int side, float *scratch, int first, int last) {
  const Tokens *tokens = &run->tokens;
  const size_t part = (size_t)chunk_of(run->threads) * p->inner_width;
  const int parts = p->states / states_at_once(run, p);
  for (size_t i = (size_t)first * p->inner_width; i < (size_t)last * p->inner_width; i += WIDE) {
    vec y = load(tokens->y + i);
    for (int k = 1; k < parts; k++) y += load(tokens->y + k * part + i);
    store(tokens->y + i, y * load(tokens->gate + i));
  }
  multiply_tokens(tokens->y, p->inner_width, side, p->inner, p->out_proj, p->group_width,
                  p->group * p->side, tokens->out, p->group_width, first, last);
  for (size_t i = (size_t)first * p->group_width; i < (size_t)last * p->group_width; i += WIDE) {
    store(tokens->out + i, load(tokens->out + i) + p->skip_scale * load(tokens->g + i));
  }
  for (int t = first; t < last; t += WIDE) {
    move_tokens(p, scratch, tokens->out + (size_t)t * p->group_width, false);
    layer_norm(p, scratch);
    for (int out = 0; out < p->out_channels; out += 4) {
      const float *weights = p->project + (size_t)out * p->in_channels;
      vec sums[4];
      UNROLL for (int k = 0; k < 4; k++) sums[k] = splat(p->project_bias[out + k]);
      for (int c = 0; c < p->in_channels; c++, weights += 4) {
        const vec value = load(scratch + c * WIDE);
        UNROLL for (int k = 0; k < 4; k++) sums[k] += value * weights[k];
      }
      UNROLL for (int k = 0; k < 4; k++) {
        store(run->out.data + (out + k) * run->out.stride + run->first_token + t, sums[k]);
      }
    }
  }
}

// The tasks below share a chunk's tokens, or in the scan its channels.
#define FOR_BRANCHES(call4, call) \
  if (p->side == 4) {             \
    call4;                        \
  } else {                        \
    call;                         \
  }

// A task of a thread's part of the chunk's tokens; the last four may reach beyond them.
#define TOKEN_TASK(step)                                         \
  static void step##_task(void *work, int thread, int threads) { \
    Run *run = work;                                             \
    const PVM *p = &run->stage->pvm;                             \
    float *scratch = run->scratch + thread * run->thread_floats; \
    int first, last;                                             \
    share(run->count, WIDE, thread, threads, &first, &last);     \
    last = up_to(last, 4);                                       \
    FOR_BRANCHES(step(run, p, 4, scratch, first, last),          \
                 step(run, p, p->side, scratch, first, last))    \
  }

TOKEN_TASK(before_scan)
TOKEN_TASK(after_conv)
TOKEN_TASK(after_scan)

static void scan_task(void *work, int thread, int threads) {
  Run *run = work;
  const PVM *p = &run->stage->pvm;
  const int at_once = states_at_once(run, p), parts = p->states / at_once;
  const int vectors = (p->inner * p->side + WIDE - 1) / WIDE;
  int first, last;
  share(vectors * parts, 1, thread, threads, &first, &last);
  for (int item = first; item < last; item++) {
    const int i = item / parts * WIDE, part = item % parts, n = part * at_once;
    float *y = run->tokens.y + (size_t)part * chunk_of(run->threads) * p->inner_width;
    if (at_once == 16) {
      FOR_BRANCHES(selective_scan(run, p, 4, i, n, 16, y), selective_scan(run, p, p->side, i, n, 16, y))
    } else if (at_once == 8) {
      FOR_BRANCHES(selective_scan(run, p, 4, i, n, 8, y), selective_scan(run, p, p->side, i, n, 8, y))
    } else {
      FOR_BRANCHES(selective_scan(run, p, 4, i, n, 4, y), selective_scan(run, p, p->side, i, n, 4, y))
    }
  }
}

// (in_channels, height, width) → (out_channels, height, width), chunk by chunk of tokens.
static void pvm_layer(Run *run) {
  const PVM *p = &run->stage->pvm;
  const Tokens *tokens = &run->tokens;
  const int kept = run->network->model.d_conv - 1;
  memset(tokens->x, 0, (size_t)kept * p->inner_width * sizeof(float));
  memset(tokens->state, 0, (size_t)p->states * p->inner_width * sizeof(float));
  const int length = run->in.height * run->in.width;
  const int chunk = chunk_of(run->threads);
  for (run->first_token = 0; run->first_token < length; run->first_token += chunk) {
    run->count = length - run->first_token < chunk ? length - run->first_token : chunk;
    team_run(run->team, before_scan_task, run);
    team_run(run->team, after_conv_task, run);
    team_run(run->team, scan_task, run);
    team_run(run->team, after_scan_task, run);
    memmove(tokens->x, tokens->x + (size_t)run->count * p->inner_width,
            (size_t)kept * p->inner_width * sizeof(float));
  }
}

#endif
