// Clean-up of a mask: small parts go, holes are filled.
//
// Neighbours of one value in a row are a span, and spans are joined to parts by union-find: the time
// grows with the pixels. No recursion.

#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { LONGEST_SIDE = 1 << 14, LEAST_SHARE = 4 };  // of the largest part: 1 / LEAST_SHARE

// Pixels begin <= x < end of row y. `parent` is a span of the same part with no higher number;
// a part's root is its own parent and holds what is known of the part.
typedef struct {
  int y, begin, end, parent;
  int area;      // of a root: pixels
  bool at_edge;  // of a root: whether the part reaches the edge of the frame
} Span;

static int root_of(Span *spans, int at) {
  while (spans[at].parent != at) {
    spans[at].parent = spans[spans[at].parent].parent;
    at = spans[at].parent;
  }
  return at;
}

static void join(Span *spans, int one, int other) {
  one = root_of(spans, one);
  other = root_of(spans, other);
  if (one == other) return;
  int low = one < other ? one : other, high = one < other ? other : one;
  spans[high].parent = low;
  spans[low].area += spans[high].area;
  spans[low].at_edge |= spans[high].at_edge;
}

// The parts of all pixels of one value. reach: 1 joins pixels that share a corner, 0 a side only.
// `spans` has room for height * (width / 2 + 1). Gives the number of spans.
static int find_parts(const uint8_t *mask, int height, int width, uint8_t value, int reach,
                      Span *spans) {
  int count = 0, above = 0, above_end = 0;  // spans of the row above: above <= span < above_end
  for (int y = 0; y < height; y++) {
    const uint8_t *row = mask + (size_t)y * (size_t)width;
    int first = count;
    for (int x = 0; x < width;) {
      const uint8_t *found = memchr(row + x, value, (size_t)(width - x));
      if (!found) break;
      int begin = (int)(found - row);
      const uint8_t *after = memchr(found, !value, (size_t)(width - begin));
      x = after ? (int)(after - row) : width;
      spans[count] = (Span){
          .y = y, .begin = begin, .end = x, .parent = count, .area = x - begin,
          .at_edge = y == 0 || y == height - 1 || begin == 0 || x == width,
      };
      while (above < above_end && spans[above].end + reach <= begin) above++;
      for (int each = above; each < above_end && spans[each].begin < x + reach; each++) {
        join(spans, each, count);
      }
      count++;
    }
    above = first;
    above_end = count;
  }
  return count;
}

int ulvm_clean_probability(const float *probability, int height, int width, float threshold,
                           float *cleaned, ulvm_error *error) {
  if (!probability || !cleaned) {
    return fail(error, ULVM_BAD_ARGUMENT, "The probability is missing. Give a map of it.");
  }
  if (height < 1 || width < 1 || height > LONGEST_SIDE || width > LONGEST_SIDE) {
    return fail(error, ULVM_BAD_ARGUMENT,
                "A map has sides of 1 to %d pixels. Give a map of such a size.", (int)LONGEST_SIDE);
  }
  size_t pixels = (size_t)height * (size_t)width;
  uint8_t *mask = malloc(pixels);
  Span *spans = malloc((size_t)height * ((size_t)width / 2 + 1) * sizeof(Span));
  if (!mask || !spans) {
    free(mask);
    free(spans);
    return fail(error, ULVM_NO_MEMORY,
                "There is not enough memory to clean the mask. Close other programs.");
  }
  if (cleaned != probability) memcpy(cleaned, probability, pixels * sizeof(float));
  for (size_t i = 0; i < pixels; i++) mask[i] = cleaned[i] >= threshold;

  int count = find_parts(mask, height, width, 1, 1, spans), largest = 0;
  for (int i = 0; i < count; i++) {
    if (spans[i].parent == i && spans[i].area > largest) largest = spans[i].area;
  }
  for (int i = 0; i < count; i++) {
    if ((int64_t)spans[root_of(spans, i)].area * LEAST_SHARE >= largest) continue;
    for (int x = spans[i].begin; x < spans[i].end; x++) {
      size_t at = (size_t)spans[i].y * (size_t)width + (size_t)x;
      cleaned[at] = 0;
      mask[at] = 0;
    }
  }
  count = find_parts(mask, height, width, 0, 0, spans);
  for (int i = 0; i < count; i++) {
    if (spans[root_of(spans, i)].at_edge) continue;
    for (int x = spans[i].begin; x < spans[i].end; x++) {
      cleaned[(size_t)spans[i].y * (size_t)width + (size_t)x] = 1;
    }
  }
  free(spans);
  free(mask);
  return ULVM_OK;
}
