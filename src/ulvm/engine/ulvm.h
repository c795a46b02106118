// UltraLight VM-UNet on a CPU: uint8 RGB in, float32 probability out.
// C11 with GCC's vector extensions, libc and libm only. Not a medical device.

#ifndef ULVM_H
#define ULVM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ULVM_API __declspec(dllexport)
#elif defined(__wasm__)
#define ULVM_API __attribute__((visibility("default"), used))
#else
#define ULVM_API __attribute__((visibility("default")))
#endif

// What went wrong. Functions that return a code return 0 (ULVM_OK) when all went well.
enum {
  ULVM_OK = 0,
  ULVM_BAD_ARGUMENT,   // a size, a thread count, a null pointer
  ULVM_BAD_FILE,       // no safetensors, damaged, or not written by ulvm
  ULVM_BAD_TENSOR,     // a weight is missing, has another shape or type, is not finite or ≥ 2^64
  ULVM_UNSUPPORTED,    // a network that only ONNX Runtime runs
  ULVM_NO_MEMORY,
  ULVM_NO_THREAD,
  ULVM_NOT_FINITE,     // the network gave a number that is no probability
};

// A code and a sentence for people: what happened, and what to do. UTF-8, always terminated.
typedef struct {
  int code;
  char sentence[252];
} ulvm_error;

// A loaded network with its memory. One thread at a time may use an engine.
typedef struct ulvm_engine ulvm_engine;

// Opens the bytes of a safetensors file that `ulvm train` wrote; the bytes may go afterwards.
// threads: 1 to 16 that share one picture. Gives NULL and fills in `error` when it can't.
// The environment variable ULVM_LEVEL (sse2, avx2, avx512, neon, wasm) forces an instruction set.
ULVM_API ulvm_engine *ulvm_open(const void *file, size_t bytes, int threads, ulvm_error *error);

// One picture: image (height, width, in_channels), 0..255, both sizes multiples of 32
// → probability (classes, height, width), 0..1. Min-max, sigmoid or softmax are inside.
ULVM_API int ulvm_run(ulvm_engine *engine, const uint8_t *image, int height, int width,
                      float *probability, ulvm_error *error);

// Frees the engine and ends its threads. NULL is allowed.
ULVM_API void ulvm_close(ulvm_engine *engine);

// Of NULL, 0 and "".
ULVM_API int ulvm_in_channels(const ulvm_engine *engine);
ULVM_API int ulvm_classes(const ulvm_engine *engine);
ULVM_API const char *ulvm_level(const ulvm_engine *engine);  // "avx512", …

// Pillow's bilinear resampling (src/libImaging/Resample.c): averages when shrinking, half-pixel
// centres, whole numbers; columns first, then rows. In two steps, so that a large photo can come in
// bands of rows.
// pixels: uint8 (rows, width, channels), channels 3 or 4 (a fourth is passed over)
// → narrow: uint8 (rows, out_width, 3).
ULVM_API int ulvm_resize_rows(const uint8_t *pixels, int rows, int width, int channels,
                              int out_width, uint8_t *narrow, ulvm_error *error);
// narrow: uint8 (height, width, 3) → image: uint8 (out_height, width, 3).
ULVM_API int ulvm_resize_columns(const uint8_t *narrow, int height, int width, int out_height,
                                 uint8_t *image, ulvm_error *error);

// Pillow's bilinear resampling of float32 (height, width) → (out_height, out_width).
// Into `resized` (float32) where it is not NULL, and into `mask` (uint8: 1 where the float32 value
// is at least `threshold`, else 0) where that is not NULL. Gives the pixels of the mask in `area`
// where that is not NULL.
ULVM_API int ulvm_resize_probability(const float *probability, int height, int width,
                                     int out_height, int out_width, float threshold,
                                     float *resized, uint8_t *mask, int64_t *area,
                                     ulvm_error *error);

// The probability without specks and holes, for a mask by this threshold: 0 in parts of the mask
// that are smaller than a quarter of its largest part, 1 in holes; all else as it was. Pixels that
// share a corner are one part; a hole is what no path of pixels that share a side joins to the edge
// of the frame. `cleaned` may be `probability`. Both are float32 (height, width).
ULVM_API int ulvm_clean_probability(const float *probability, int height, int width,
                                    float threshold, float *cleaned, ulvm_error *error);

#ifdef __cplusplus
}
#endif
#endif
