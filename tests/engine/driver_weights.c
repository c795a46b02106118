// Reads weights after weights from the standard input, each behind its length (8 bytes, little-endian).
// Prints for each a line "code sentence"; for those that are read, before it, what they are and for
// each tensor its name, its length and the CRC-32 of its values, at the places that model.h names.

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static uint32_t crc32(const void *values, size_t bytes) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes; i++) {
    crc ^= ((const uint8_t *)values)[i];
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}

static void print(const char *part, int i, const char *name, const float *values, int floats) {
  char number[16] = "";
  if (i >= 0) snprintf(number, sizeof number, ".%d", i);
  printf("%s%s%s %d %" PRIu32 "%s\n", part, number, name, floats,
         crc32(values, (size_t)floats * sizeof(float)), (uintptr_t)values % 64 ? " unaligned" : "");
}

static void print_stage(const char *part, int i, const StageWeights *stage, const Model *model,
                        int in_channels, int out_channels) {
  if (!stage->is_pvm) {
    print(part, i, ".weight", stage->conv.weight, out_channels * in_channels * 9);
    print(part, i, ".bias", stage->conv.bias, out_channels);
    return;
  }
  const PVMWeights *pvm = &stage->pvm;
  const int group = in_channels / model->branches, inner = model->expand * group;
  const int rank = (group + 15) / 16, states = model->d_state;
  print(part, i, ".norm.weight", pvm->norm.weight, in_channels);
  print(part, i, ".norm.bias", pvm->norm.bias, in_channels);
  print(part, i, ".mixer.in_proj.weight", pvm->in_proj, 2 * inner * group);
  print(part, i, ".mixer.conv.weight", pvm->conv.weight, inner * model->d_conv);
  print(part, i, ".mixer.conv.bias", pvm->conv.bias, inner);
  print(part, i, ".mixer.scan.x_proj.weight", pvm->x_proj, (rank + 2 * states) * inner);
  print(part, i, ".mixer.scan.dt_proj.weight", pvm->dt_proj.weight, inner * rank);
  print(part, i, ".mixer.scan.dt_proj.bias", pvm->dt_proj.bias, inner);
  print(part, i, ".mixer.scan.A_log", pvm->A_log, inner * states);
  print(part, i, ".mixer.scan.D", pvm->D, inner);
  print(part, i, ".mixer.out_proj.weight", pvm->out_proj, group * inner);
  print(part, i, ".skip_scale", pvm->skip_scale, 1);
  print(part, i, ".project.weight", pvm->project.weight, out_channels * in_channels);
  print(part, i, ".project.bias", pvm->project.bias, out_channels);
}

static void print_model(const Model *model) {
  const int *widths = model->widths;
  int sum = 0;
  for (int i = 0; i < SKIPS; i++) sum += widths[i];
  printf("in_channels=%d classes=%d branches=%d d_state=%d d_conv=%d expand=%d\n", model->in_channels,
         model->classes, model->branches, model->d_state, model->d_conv, model->expand);
  for (int i = 0; i < STAGES; i++) {
    const int before = i ? widths[i - 1] : model->in_channels;
    print_stage("encoder", i, &model->encoder[i], model, before, widths[i]);
  }
  for (int i = 0; i < SKIPS; i++) {
    const int in_channels = widths[SKIPS - i], out_channels = widths[SKIPS - i - 1];
    print_stage("decoder", i, &model->decoder[i], model, in_channels, out_channels);
    print("encoder_norms", i, ".weight", model->encoder_norms[i].weight, widths[i]);
    print("encoder_norms", i, ".bias", model->encoder_norms[i].bias, widths[i]);
    print("decoder_norms", i, ".weight", model->decoder_norms[i].weight, out_channels);
    print("decoder_norms", i, ".bias", model->decoder_norms[i].bias, out_channels);
    if (!model->channel) continue;
    print("bridge.channel.heads", i, ".weight", model->bridge_heads[i].weight, widths[i] * sum);
    print("bridge.channel.heads", i, ".bias", model->bridge_heads[i].bias, widths[i]);
  }
  if (model->channel) print("bridge.channel.conv", -1, ".weight", model->bridge_channel, 3);
  if (model->spatial) {
    print("bridge.spatial.conv", -1, ".weight", model->bridge_spatial.weight, 98);
    print("bridge.spatial.conv", -1, ".bias", model->bridge_spatial.bias, 1);
  }
  print("head", -1, ".weight", model->head.weight, model->classes * widths[0]);
  print("head", -1, ".bias", model->head.bias, model->classes);
}

int main(void) {
  uint64_t bytes;
  while (fread(&bytes, sizeof bytes, 1, stdin) == 1) {
    // At an odd address, and nothing behind it, so that a sanitizer sees the first byte too many.
    char *block = malloc((size_t)bytes + 1);
    if (!block || fread(block + 1, 1, (size_t)bytes, stdin) != bytes) return 2;
    Model model;
    ulvm_error error = {0};
    const int code = model_read(block + 1, (size_t)bytes, &model, &error);
    free(block);  // the bytes may go
    if (!code) print_model(&model);
    if (code != error.code || !memchr(error.sentence, 0, sizeof error.sentence)) return 3;
    printf("%d %s\n", code, error.sentence);
    model_free(&model);
    model_free(&model);  // a second time is nothing
  }
  return 0;
}
