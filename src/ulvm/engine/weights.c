// Reads what `ulvm train` wrote: a safetensors file is the length of a JSON header, the header and
// the tensors' values. Under "__metadata__", "ulvm" it holds the run's ModelSpec: JSON in a string.
//
// Nothing in the file is believed. Names, shapes and sizes follow from the ModelSpec, whose numbers
// have upper limits here, and the file has to have them too.

#include "json.h"
#include "model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The file's numbers are little-endian, and are copied as they are."
#endif

enum {
  LARGEST_HEADER = 1 << 24,
  PART = 36,           // of a name: room for "bridge.channel.heads." and any number
  AXES = 4,
  MOST_TENSORS = 192,  // 14 in each of 11 stages, 2 in each of 10 norms, 13 in the bridge, 2
  ALIGNED = 64,
};

int fail(ulvm_error *error, int code, const char *format, ...) {
  if (!error) return code;
  error->code = code;
  va_list values;
  va_start(values, format);
  vsnprintf(error->sentence, sizeof error->sentence, format, values);
  va_end(values);
  for (char *c = error->sentence; *c; c++) {  // names from a file may hold anything
    if (*c < ' ' || *c > '~') *c = '?';
  }
  return code;
}

static int fail_damaged(ulvm_error *error, const char *why) {
  return fail(error, ULVM_BAD_FILE,
              "The weights are damaged, for %s. Copy or download the file again.", why);
}

// ---- the ModelSpec, with spec.py's checks

static int fail_field(ulvm_error *error, const char *field, const char *accepted) {
  return fail(error, ULVM_BAD_FILE,
              "ModelSpec.%s of the weights does not fit: it must be %s. Copy the file or train "
              "the network again.", field, accepted);
}

static int fail_unsupported(ulvm_error *error, const char *what) {
  return fail(error, ULVM_UNSUPPORTED,
              "The engine does not run %s, but ONNX Runtime does. Write its file with ulvm export "
              "RUN --out model.onnx, then ulvm predict --engine onnx --model model.onnx.", what);
}

static int check_number(int64_t value, const char *field, int highest, ulvm_error *error) {
  char what[2 * NAME];
  if (value < 1) return fail_field(error, field, "a whole number from 1 on");
  if (value <= highest) return ULVM_OK;
  snprintf(what, sizeof what, "%s above %d", field, highest);
  return fail_unsupported(error, what);
}

static int read_widths(Json *json, Model *model, ulvm_error *error) {
  static const char accepted[] = "a list of 6 multiples of 4";
  int64_t values[STAGES];
  if (read_list(json, NULL, values, STAGES) != STAGES) return fail_field(error, "widths", accepted);
  for (int i = 0; i < STAGES; i++) {
    if (values[i] <= LARGEST_WIDTH && (values[i] < 4 || values[i] % 4)) {
      return fail_field(error, "widths", accepted);
    }
    const int code = check_number(values[i], "widths", LARGEST_WIDTH, error);
    if (code) return code;
    model->widths[i] = (int)values[i];
  }
  return ULVM_OK;
}

static int read_stages(Json *json, const char *field, StageWeights *stages, int wanted,
                       ulvm_error *error) {
  static const char *const kinds[] = {"conv", "pvm", NULL};
  int64_t values[STAGES];
  int fitting = read_list(json, kinds, values, wanted) == wanted;
  for (int i = 0; i < wanted && fitting; i++) {
    fitting = values[i] >= 0;
    stages[i].is_pvm = values[i] == 1;
  }
  return fitting ? ULVM_OK : fail_field(error, field, "conv or pvm for each stage");
}

static int read_name(Json *json, const char *field, const char *ours, ulvm_error *error) {
  char name[NAME], what[3 * NAME];
  read_word(json, name);
  if (!strcmp(name, ours)) return ULVM_OK;
  if (!*name) return fail_field(error, field, "a name");
  snprintf(what, sizeof what, "%s=%s", field, name);
  return fail_unsupported(error, what);
}

static int read_field(Json *json, const char *field, Model *model, ulvm_error *error) {
  static const char *const bridges[] = {"none", "spatial", "channel", "both", NULL};
  static const char *const inits[] = {"paper", "mamba", NULL};
  const struct {
    const char *name;
    int *value, highest;
  } numbers[] = {
      {"in_channels", &model->in_channels, 16},      {"classes", &model->classes, 255},
      {"branches", &model->branches, LARGEST_WIDTH}, {"d_state", &model->d_state, 256},
      {"d_conv", &model->d_conv, 16},                {"expand", &model->expand, 16},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    if (strcmp(field, numbers[i].name)) continue;
    const int64_t value = read_item(json, NULL);
    const int code = check_number(value, field, numbers[i].highest, error);
    if (!code) *numbers[i].value = (int)value;
    return code;
  }
  if (!strcmp(field, "network")) return read_name(json, field, "ultralight-vm-unet", error);
  if (!strcmp(field, "mixer")) return read_name(json, field, "mamba", error);
  if (!strcmp(field, "widths")) return read_widths(json, model, error);
  if (!strcmp(field, "encoder")) return read_stages(json, field, model->encoder, STAGES, error);
  if (!strcmp(field, "decoder")) return read_stages(json, field, model->decoder, SKIPS, error);
  if (!strcmp(field, "bridge")) {
    const int bridge = read_choice(json, bridges);
    if (bridge < 0) return fail_field(error, field, "both, spatial, channel or none");
    model->spatial = bridge & 1;
    model->channel = bridge & 2;
    return ULVM_OK;
  }
  if (strcmp(field, "init")) {
    return fail(error, ULVM_BAD_FILE,
                "The weights have a ModelSpec with %s, which this ulvm doesn't know. Update ulvm.",
                field);
  }
  return read_choice(json, inits) < 0 ? fail_field(error, field, "paper or mamba") : ULVM_OK;
}

static int encoder_input(const Model *model, int i) {
  return i ? model->widths[i - 1] : model->in_channels;
}
static int decoder_input(const Model *model, int i) { return model->widths[STAGES - 1 - i]; }

static int read_model(Json *json, Model *model, ulvm_error *error) {
  char field[NAME];
  int count = 0;
  *model = (Model){.in_channels = 3, .classes = 1, .widths = {8, 16, 24, 32, 48, 64},
                   .branches = 4, .d_state = 16, .d_conv = 4, .expand = 2,
                   .spatial = true, .channel = true};
  for (int i = 3; i < STAGES; i++) model->encoder[i].is_pvm = model->decoder[i - 3].is_pvm = true;
  enter(json, '{');
  while (next_key(json, &count, field)) {
    const int code = read_field(json, field, model, error);
    if (code) return code;
  }
  for (int i = 0; i < STAGES; i++) {
    if ((model->encoder[i].is_pvm && encoder_input(model, i) % model->branches) ||
        (i < SKIPS && model->decoder[i].is_pvm && decoder_input(model, i) % model->branches)) {
      return fail_field(error, "branches", "a divisor of each PVM stage's input channels");
    }
  }
  return ULVM_OK;
}

// The header's {"__metadata__": {"ulvm": text}}, the text {"format": 1, "run": {"model": …}}.
// `text` has room for the header.
static int read_description(Json header, char *text, Model *model, ulvm_error *error) {
  const size_t room = (size_t)(header.end - header.at) + 1;
  if (!is_one_value(header)) return fail_damaged(error, "their header is no JSON");
  if (!seek(&header, "__metadata__") || !seek(&header, "ulvm") || peek(&header) != '"') {
    return fail(error, ULVM_BAD_FILE,
                "These weights have no description by ulvm. Choose a .safetensors file that ulvm "
                "train wrote.");
  }
  read_string(&header, text, room);
  const Json whole = {text, text + strlen(text), 0, false};
  if (!is_one_value(whole)) return fail_damaged(error, "their description is no JSON");
  Json format = whole, run = whole;
  if (!seek(&format, "format") || read_item(&format, NULL) != 1) {
    return fail(error, ULVM_BAD_FILE,
                "The weights are not of format 1, which this ulvm reads. Update ulvm.");
  }
  if (!seek(&run, "run") || !seek(&run, "model") || peek(&run) != '{') {
    return fail_damaged(error, "their description has no run with a model");
  }
  return read_model(&run, model, error);
}

// ---- the tensors that the network has, by nn/model.py's names

typedef struct {
  char name[NAME];
  int64_t shape[AXES];         // 0 behind the last axis
  int64_t floats, begin, end;  // where it lies, in bytes of the file's data; 0 until it is found
  const float **place;
} Tensor;

typedef struct {
  int count;
  Tensor tensors[MOST_TENSORS];
} Tensors;

static void add(Tensors *all, const float **place, const char *part, const char *name,
                const char *suffix, int64_t a, int64_t b, int64_t c, int64_t d) {
  Tensor *tensor = &all->tensors[all->count++];
  *tensor = (Tensor){.shape = {a, b, c, d}, .floats = 1, .place = place};
  snprintf(tensor->name, NAME, "%s%s%s", part, name, suffix);
  for (int i = 0; i < AXES && tensor->shape[i]; i++) tensor->floats *= tensor->shape[i];
}

static void add_affine(Tensors *all, Affine *affine, const char *part, const char *name, int64_t a,
                       int64_t b, int64_t c, int64_t d) {
  add(all, &affine->weight, part, name, ".weight", a, b, c, d);
  add(all, &affine->bias, part, name, ".bias", a, 0, 0, 0);
}

static void add_stage(Tensors *all, StageWeights *stage, const char *part, const Model *model,
                      int64_t in_channels, int64_t out_channels) {
  if (!stage->is_pvm) {
    add_affine(all, &stage->conv, part, "", out_channels, in_channels, 3, 3);
    return;
  }
  PVMWeights *pvm = &stage->pvm;
  const int64_t group = in_channels / model->branches, inner = model->expand * group;
  const int64_t rank = (group + 15) / 16, states = model->d_state;
  add_affine(all, &pvm->norm, part, ".norm", in_channels, 0, 0, 0);
  add(all, &pvm->in_proj, part, ".mixer.in_proj", ".weight", 2 * inner, group, 0, 0);
  add_affine(all, &pvm->conv, part, ".mixer.conv", inner, 1, model->d_conv, 0);
  add(all, &pvm->x_proj, part, ".mixer.scan.x_proj", ".weight", rank + 2 * states, inner, 0, 0);
  add_affine(all, &pvm->dt_proj, part, ".mixer.scan.dt_proj", inner, rank, 0, 0);
  add(all, &pvm->A_log, part, ".mixer.scan", ".A_log", inner, states, 0, 0);
  add(all, &pvm->D, part, ".mixer.scan", ".D", inner, 0, 0, 0);
  add(all, &pvm->out_proj, part, ".mixer.out_proj", ".weight", group, inner, 0, 0);
  add(all, &pvm->skip_scale, part, "", ".skip_scale", 1, 0, 0, 0);
  add_affine(all, &pvm->project, part, ".project", out_channels, in_channels, 0, 0);
}

static void list_tensors(Tensors *all, Model *model) {
  const int *widths = model->widths;
  char part[PART];
  int64_t sum = 0;
  for (int i = 0; i < SKIPS; i++) sum += widths[i];
  for (int i = 0; i < STAGES; i++) {
    snprintf(part, PART, "encoder.%d", i);
    add_stage(all, &model->encoder[i], part, model, encoder_input(model, i), widths[i]);
  }
  for (int i = 0; i < SKIPS; i++) {
    const int below = widths[SKIPS - 1 - i];
    snprintf(part, PART, "decoder.%d", i);
    add_stage(all, &model->decoder[i], part, model, decoder_input(model, i), below);
    snprintf(part, PART, "encoder_norms.%d", i);
    add_affine(all, &model->encoder_norms[i], part, "", widths[i], 0, 0, 0);
    snprintf(part, PART, "decoder_norms.%d", i);
    add_affine(all, &model->decoder_norms[i], part, "", below, 0, 0, 0);
    snprintf(part, PART, "bridge.channel.heads.%d", i);
    if (model->channel) add_affine(all, &model->bridge_heads[i], part, "", widths[i], sum, 0, 0);
  }
  if (model->channel) {
    add(all, &model->bridge_channel, "bridge.channel", ".conv", ".weight", 1, 1, 3, 0);
  }
  if (model->spatial) {
    add_affine(all, &model->bridge_spatial, "bridge.spatial", ".conv", 1, 2, 7, 7);
  }
  add_affine(all, &model->head, "head", "", model->classes, widths[0], 1, 1);
}

// ---- the tensors that the file has

static int fail_tensor(ulvm_error *error, int code, const char *name, const char *what) {
  return fail(error, code,
              "The weights' tensor %s %s. Copy the file or train the network again.", name, what);
}

// {"dtype": "F32", "shape": […], "data_offsets": [begin, end]}
static int find_tensor(Json entry, const char *name, Tensors *all, size_t data_bytes,
                       ulvm_error *error) {
  Json type = entry, shape = entry, place = entry;
  Tensor *tensor = NULL;
  for (int i = 0; i < all->count; i++) {
    if (!strcmp(name, all->tensors[i].name)) tensor = &all->tensors[i];
  }
  if (!tensor) return fail_tensor(error, ULVM_BAD_TENSOR, name, "is not one of its network's");
  if (tensor->end) return fail_tensor(error, ULVM_BAD_FILE, name, "is there twice");

  static const char *const types[] = {"F32", NULL};
  if (!seek(&type, "dtype") || read_choice(&type, types)) {
    return fail_tensor(error, ULVM_BAD_TENSOR, name, "is not of type F32");
  }
  int64_t sizes[AXES] = {0}, ends[2] = {0};
  int axes = 0;
  while (axes < AXES && tensor->shape[axes]) axes++;
  if (!seek(&shape, "shape") || read_list(&shape, NULL, sizes, AXES) != axes ||
      memcmp(sizes, tensor->shape, sizeof sizes)) {
    return fail_tensor(error, ULVM_BAD_TENSOR, name, "has another shape than in its network");
  }
  if (!seek(&place, "data_offsets") || read_list(&place, NULL, ends, 2) != 2 || ends[0] < 0 ||
      ends[1] < 0 || (uint64_t)ends[1] > data_bytes ||
      ends[1] - ends[0] != tensor->floats * (int64_t)sizeof(float)) {
    return fail_tensor(error, ULVM_BAD_FILE, name, "is not in the file as a whole");
  }
  for (int i = 0; i < all->count; i++) {
    if (ends[0] < all->tensors[i].end && all->tensors[i].begin < ends[1]) {
      return fail_tensor(error, ULVM_BAD_FILE, name, "lies where another one does");
    }
  }
  tensor->begin = ends[0];
  tensor->end = ends[1];
  return ULVM_OK;
}

static int find_tensors(Json header, Tensors *all, size_t data_bytes, ulvm_error *error) {
  char name[NAME];
  int count = 0;
  uint64_t used = 0;
  enter(&header, '{');
  while (next_key(&header, &count, name)) {
    if (strcmp(name, "__metadata__")) {
      const int code = find_tensor(header, name, all, data_bytes, error);
      if (code) return code;
    }
    skip_value(&header);
  }
  for (int i = 0; i < all->count; i++) {
    const Tensor *tensor = &all->tensors[i];
    if (!tensor->end) return fail_tensor(error, ULVM_BAD_TENSOR, tensor->name, "is missing");
    used += (uint64_t)(tensor->end - tensor->begin);
  }
  if (used == data_bytes) return ULVM_OK;
  return fail_damaged(error, "there is more in the file than their tensors");
}

// The tensors were found, each in a place of its own: together they are no longer than the file.
static int copy_tensors(const Tensors *all, const char *data, Model *model, ulvm_error *error) {
  size_t bytes = ALIGNED;
  for (int i = 0; i < all->count; i++) {
    bytes += (size_t)all->tensors[i].floats * sizeof(float) + ALIGNED;
  }
  model->memory = malloc(bytes);
  if (!model->memory) {
    return fail(error, ULVM_NO_MEMORY, "There is no memory for the weights. Close other programs.");
  }
  float *values = model->memory;
  for (int i = 0; i < all->count; i++) {
    const Tensor *tensor = &all->tensors[i];
    values += (ALIGNED - (uintptr_t)values % ALIGNED) / sizeof(float);
    memcpy(values, data + tensor->begin, (size_t)tensor->floats * sizeof(float));
    *tensor->place = values;
    for (const float *end = values + tensor->floats; values < end; values++) {
      uint32_t bits;
      memcpy(&bits, values, sizeof bits);
      if ((bits & 0x7f800000) >= 0x5f800000) {  // a flipped bit of a small number gives such a one
        return fail_tensor(error, ULVM_BAD_TENSOR, tensor->name,
                           "has a number that is not finite or beyond 2^64");
      }
    }
  }
  return ULVM_OK;
}

int model_read(const void *file, size_t bytes, Model *model, ulvm_error *error) {
  const char *content = file;
  uint64_t length = 0;
  *model = (Model){0};
  if (bytes >= sizeof length) memcpy(&length, content, sizeof length);
  if (!length || length > LARGEST_HEADER || length > bytes - sizeof length) {
    return fail(error, ULVM_BAD_FILE,
                "This is no safetensors file, or its end is missing. Choose one that ulvm train "
                "wrote, or copy it again.");
  }
  const char *data = content + sizeof length + length;
  const size_t data_bytes = bytes - sizeof length - (size_t)length;
  const Json header = {content + sizeof length, data, 0, false};

  Tensors *all = calloc(1, sizeof *all);
  char *text = malloc((size_t)length + 1);
  int code = ULVM_OK;
  if (!all || !text) {
    code = fail(error, ULVM_NO_MEMORY, "There is no memory for the weights. Close other programs.");
  }
  if (!code) code = read_description(header, text, model, error);
  if (!code) {
    list_tensors(all, model);
    code = find_tensors(header, all, data_bytes, error);
  }
  if (!code) code = copy_tensors(all, data, model, error);
  free(all);
  free(text);
  if (code) model_free(model);
  return code;
}

void model_free(Model *model) {
  free(model->memory);
  *model = (Model){0};
}
