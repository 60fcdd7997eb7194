/* The engine of ../c for WebAssembly, with a model in memory that the caller has put there. build.sh makes the modules. */
#define STORY_API static __attribute__((unused))
#include "../c/story.h"
#include "../c/exact.c"
#include "../c/matrix.c"
#include "../c/ring.c"
#include "../c/pointer.c"
#include "../c/model.c"
#include "../c/text.c"
#include "../c/sample.c"

/* Not calls of themselves. */
#define PLAIN __attribute__((no_builtin))
#define EXPORT(name) __attribute__((export_name(#name)))

PLAIN void *memmove(void *to, const void *from, size_t n) {
    char *t = to;
    const char *f = from;
    if (t < f) for (size_t i = 0; i < n; i++) t[i] = f[i];
    else while (n--) t[n] = f[n];
    return to;
}

PLAIN void *memcpy(void *restrict to, const void *restrict from, size_t n) { return memmove(to, from, n); }

PLAIN void *memset(void *to, int byte, size_t n) {
    char *t = to;
    for (size_t i = 0; i < n; i++) t[i] = (char)byte;
    return to;
}

PLAIN int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++) if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    return 0;
}

PLAIN size_t strlen(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    return n;
}

extern unsigned char __heap_base;
static Story *story;

/* The first byte that is free. */
EXPORT(heap) unsigned char *heap(void) { return &__heap_base; }
EXPORT(size) size_t size(const unsigned char *model, size_t bytes) { return story_size(model, bytes); }
EXPORT(init) int init(void *memory, const unsigned char *model, size_t bytes) {
    return (story = story_init(memory, model, bytes)) != NULL;
}
EXPORT(vocab) uint32_t vocab(void) { return story_vocab(story); }
EXPORT(eos) int eos(void) { return story_eos(story); }
EXPORT(reset) void reset(uint32_t low, uint32_t high) { story_reset(story, (uint64_t)high << 32 | low); }
EXPORT(feed_text) int feed_text(const char *text, size_t length) { return story_feed(story, text, length); }
EXPORT(feed_token) void feed_token(uint32_t token) { feed(story, token); }
EXPORT(text) size_t text(int token, char *to) { return story_text(story, token, to); }

EXPORT(sample) int sample(float temperature, uint32_t top_k, float top_p, float min_p) {
    StorySettings settings = {temperature, top_k, top_p, min_p};
    return story_sample(story, &settings);
}

/* Of the logits that the last token was chosen from: its probability, then the likeliest tokens and theirs. */
EXPORT(likely) void likely(uint32_t token, float *p, uint32_t *ids, uint32_t n) {
    const float *restrict z = story->logits;
    size_t v = story->vocab;
    float max = max_(z, v), acc[16] = {0};
    size_t at = 0;
    for (; at + 16 <= v; at += 16)
        for (size_t i = 0; i < 16; i++) acc[i] += exp_(z[at + i] - max);
    for (size_t i = 0; at + i < v; i++) acc[i] += exp_(z[at + i] - max);
    float by = 1.0f / sum_(acc), least = of_bits(0xff800000u);
    uint32_t held = 0;
    p[0] = exp_(z[token] - max) * by;
    for (uint32_t id = 0; id < v; id++) {
        if (held == n && !(z[id] > least)) continue;
        uint32_t place = held < n ? held++ : n - 1;
        while (place > 0 && z[id] > z[ids[place - 1]]) {
            ids[place] = ids[place - 1];
            place--;
        }
        ids[place] = id;
        least = z[ids[held - 1]];
    }
    for (uint32_t i = 0; i < held; i++) p[1 + i] = exp_(z[ids[i]] - max) * by;
}

/* The bytes of a token alone. */
EXPORT(alone) size_t alone(uint32_t token, char *to) {
    size_t n;
    const unsigned char *bytes = token_bytes(story, token, &n);
    memcpy(to, bytes, n);
    return n;
}
