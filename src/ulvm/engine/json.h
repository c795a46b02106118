// JSON from left to right, without memory of its own; after a mistake it is `broken`, and no more is read.

#ifndef ULVM_JSON_H
#define ULVM_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
  DEEPEST = 16,  // objects and lists in each other
  NAME = 64,     // room for any name that is looked for
};

typedef struct {
  const char *at, *end;
  int depth;
  bool broken;
} Json;

static bool is_at(const Json *json, const char *any_of) {
  return json->at < json->end && *json->at && strchr(any_of, *json->at);
}

// The next character that is no space; 0 at the end.
static char peek(Json *json) {
  while (is_at(json, " \t\r\n")) json->at++;
  return json->broken || json->at == json->end ? 0 : *json->at;
}

static bool accept(Json *json, char wanted) {
  if (peek(json) != wanted) return false;
  json->at++;
  return true;
}

static void need(Json *json, char wanted) {
  if (!accept(json, wanted)) json->broken = true;
}

static void enter(Json *json, char opening) {
  need(json, opening);
  if (++json->depth > DEEPEST) json->broken = true;
}

// Whether the object or list has another item; they are counted.
static bool next_item(Json *json, int *count, char closing) {
  if (accept(json, closing)) {
    json->depth--;
    return false;
  }
  if ((*count)++) need(json, ',');
  return !json->broken;
}

static char read_escape(Json *json) {
  static const char names[] = "\"\\/bfnrtu", values[] = "\"\\/\b\f\n\r\t";
  static const char digits[] = "0123456789abcdef";
  if (!is_at(json, names)) {
    json->broken = true;
    return '?';
  }
  const char name = *json->at++;
  if (name != 'u') return values[strchr(names, name) - names];
  int letter = 0;
  for (int i = 0; i < 4 && !json->broken; i++) {
    if (is_at(json, "0123456789abcdefABCDEF")) {
      const char digit = *json->at++;
      letter = letter * 16 + (int)(strchr(digits, digit < 'A' ? digit : digit | 32) - digits);
    } else {
      json->broken = true;
    }
  }
  return letter > 0 && letter < 128 ? (char)letter : '?';  // no name here has such letters
}

// Into `text`, cut to `size` with its final 0.
static void read_string(Json *json, char *text, size_t size) {
  size_t length = 0;
  need(json, '"');
  while (!json->broken) {
    char c = json->at < json->end ? *json->at++ : 0;
    if (c == '"') break;
    if ((unsigned char)c < ' ') json->broken = true;
    if (c == '\\') c = read_escape(json);
    if (length + 1 < size) text[length++] = c;
  }
  text[length] = 0;
}

// The object's next key, of room NAME, if there is another.
static bool next_key(Json *json, int *count, char *key) {
  if (!next_item(json, count, '}')) return false;
  read_string(json, key, NAME);
  need(json, ':');
  return !json->broken;
}

// One digit or more; of what is above 10^15 only that it is.
static int64_t read_digits(Json *json) {
  int64_t value = 0;
  if (!is_at(json, "0123456789")) json->broken = true;
  for (; is_at(json, "0123456789"); json->at++) {
    if (value < 1000000000000000) value = value * 10 + (*json->at - '0');
  }
  return value;
}

// A whole number from 0 on; -1 for other numbers.
static int64_t read_number(Json *json) {
  bool is_whole = !accept(json, '-');
  const char *start = json->at;
  const int64_t value = read_digits(json);
  if (json->at - start > 1 && *start == '0') json->broken = true;
  if (is_at(json, ".")) {
    is_whole = false;
    json->at++;
    read_digits(json);
  }
  if (is_at(json, "eE")) {
    is_whole = false;
    json->at++;
    if (is_at(json, "+-")) json->at++;
    read_digits(json);
  }
  return is_whole ? value : -1;
}

static void skip_value(Json *json) {
  static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
  char text[NAME];
  int count = 0;
  const char first = peek(json);
  if (first == '"') {
    read_string(json, text, NAME);
  } else if (first == '{') {
    enter(json, first);
    while (next_key(json, &count, text)) skip_value(json);
  } else if (first == '[') {
    enter(json, first);
    while (next_item(json, &count, ']')) skip_value(json);
  } else {
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {  // the last three are Python's own
      const size_t length = strlen(words[i]);
      if ((size_t)(json->end - json->at) >= length && !memcmp(json->at, words[i], length)) {
        json->at += length;
        return;
      }
    }
    read_number(json);
  }
}

static bool is_one_value(Json json) {
  skip_value(&json);
  return !peek(&json) && json.at == json.end && !json.broken;
}

// From an object to the value of this key, the last one as in Python; false if there is none.
static bool seek(Json *json, const char *wanted) {
  char key[NAME];
  const char *found = NULL;
  int count = 0;
  if (peek(json) != '{') return false;
  enter(json, '{');
  while (next_key(json, &count, key)) {
    if (!strcmp(key, wanted)) found = json->at;
    skip_value(json);
  }
  if (found) json->at = found;
  return found && !json->broken;
}

// Empty if the value is no string; of room NAME.
static void read_word(Json *json, char *word) {
  word[0] = 0;
  if (peek(json) == '"') {
    read_string(json, word, NAME);
  } else {
    skip_value(json);
  }
}

// Which of the names, which end with NULL; -1 for none.
static int read_choice(Json *json, const char *const *names) {
  char word[NAME];
  read_word(json, word);
  for (int i = 0; names[i]; i++) {
    if (!strcmp(word, names[i])) return i;
  }
  return -1;
}

// With names their place, else a whole number from 0 on; -1 for anything else.
static int64_t read_item(Json *json, const char *const *names) {
  const char first = peek(json);
  if (names) return read_choice(json, names);
  if (first >= '0' && first <= '9') return read_number(json);
  skip_value(json);
  return -1;
}

// How many items the list has, the first `room` into `values`; -1 if it is no list.
static int read_list(Json *json, const char *const *names, int64_t *values, int room) {
  int count = 0;
  if (peek(json) != '[') {
    skip_value(json);
    return -1;
  }
  enter(json, '[');
  while (next_item(json, &count, ']')) {
    const int64_t value = read_item(json, names);
    if (count <= room) values[count - 1] = value;
  }
  return count;
}

#endif
