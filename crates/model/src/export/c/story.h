/*
 * One writer of texts. The caller gives memory once; nothing is allocated after that, and no function of libm is called.
 *
 *     const unsigned char *model = story_model(&bytes);             the model in this file, if it is in it
 *     size_t size = story_size(model, bytes);                      bytes of memory that this model needs; 0: not a model
 *     Story *story = story_init(memory, model, bytes);             memory of that size, aligned as malloc's; the model stays in use
 *     story_reset(story, seed);                                    start of a text
 *     story_feed(story, text, length);                             text that is given: tokens, or -1 (not UTF-8, or a word too long)
 *     const float *z = story_logits(story);                        logits of the next token, story_vocab of them
 *     int token = story_sample(story, &settings);                  chosen and fed: a token, or -1 (logits that are no numbers)
 *     size_t n = story_text(story, token, text);                   its text: whole UTF-8 characters, at most STORY_TEXT bytes
 *
 * A text ends with the token story_eos(story); its story_text is what was left of a character that never came whole.
 *
 * Memory does not grow with the text. Most of it are the rows that a token looks back at: 8 window dim bytes for each block of attention,
 * 4 window (dim + 1) for pointers, each with 15 to 30 rows more than the window.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "build without -ffast-math or -Ofast: sums must be in the order written"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(STORY_NO_MAIN)
#define STORY_API
#elif defined(__GNUC__)
#define STORY_API static __attribute__((unused))
#else
#define STORY_API static
#endif
/* Longest word of a text given, in bytes; a word takes 12 bytes of memory for each. */
#ifndef STORY_WORD
#define STORY_WORD 4096
#endif
/* Longest text of a token: every byte of one may become U+FFFD. */
#define STORY_TEXT 3081

typedef struct Story Story;

typedef struct {
    float temperature; /* 0: always the most likely token */
    uint32_t top_k;    /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
} StorySettings;

#ifndef STORY_SEPARATE
STORY_API const unsigned char *story_model(size_t *bytes);
#endif
STORY_API size_t story_size(const unsigned char *model, size_t bytes);
STORY_API Story *story_init(void *memory, const unsigned char *model, size_t bytes);
STORY_API void story_reset(Story *story, uint64_t seed);
STORY_API int story_feed(Story *story, const char *text, size_t length);
STORY_API const float *story_logits(Story *story);
STORY_API int story_sample(Story *story, const StorySettings *settings);
STORY_API size_t story_text(Story *story, int token, char *text);
STORY_API uint32_t story_vocab(const Story *story);
STORY_API int story_eos(const Story *story);
/* Whether the compiler rounds every product and sum by itself; else texts differ from those of flashlm. */
STORY_API int story_exact(void);
