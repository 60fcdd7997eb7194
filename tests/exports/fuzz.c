/*
 * Damaged models for the engine of `flashlm export c --weights separate`: fuzz FILE.bin ROUNDS SEED, built with -I of the folder and sanitizers.
 * Each round cuts, flips, overwrites, inserts or removes some bytes, and lets the engine write where it takes the model: in memory of the very
 * size that it asks for, so that a step outside is seen. Prints how many models were refused and how many wrote. A round that takes ten seconds
 * ends the program.
 */
#define STORY_NO_MAIN
#include "story.c"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MOST ((size_t)64 << 20)

static uint64_t state;

static uint32_t below(uint64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static void damage(unsigned char *bytes, size_t *n) {
    static const uint32_t numbers[] = {0, 1, 2, 3, 15, 16, 17, 255, 256, 65535, 65536, 1 << 20, (1 << 20) + 1, 1 << 24, 0x7fffffff, 0x80000000u, 0xffffffffu, 0x7fc00000, 0x7f800000};
    /* Anywhere, where the sizes are, or in the vocabulary, which is last. */
    uint32_t where = below(3);
    size_t at = where == 0 ? below(*n) : where == 1 ? below(*n < 400 ? *n : 400) : *n - 1 - below(*n < 6000 ? *n : 6000), len = 1 + below(16);
    if (len > *n - at) len = *n - at;
    switch (below(6)) {
    case 0: *n = at; break;
    case 1: bytes[at] ^= (unsigned char)(1u << below(8)); break;
    case 2: {
        uint32_t number = below(3) ? numbers[below(sizeof numbers / sizeof *numbers)] : below(1ull << 31);
        for (size_t i = 0; i < 4 && at + i < *n; i++) bytes[at + i] = (unsigned char)(number >> (8 * i));
        break;
    }
    case 3:
        memmove(bytes + at, bytes + at + len, *n - at - len);
        *n -= len;
        break;
    case 4:
        memmove(bytes + at + len, bytes + at, *n - at);
        *n += len;
        break;
    default: bytes[at] = (unsigned char)(bytes[at] + (below(2) ? 1 : 255));
    }
}

int main(int argc, char **argv) {
    FILE *file = argc == 4 ? fopen(argv[1], "rb") : NULL;
    static unsigned char good[1 << 22], bad[(1 << 22) + 256];
    size_t whole = file ? fread(good, 1, sizeof good, file) : 0;
    long rounds = argc == 4 ? atol(argv[2]) : 0, refused = 0, large = 0, wrote = 0;
    static char text[STORY_TEXT];
    if (whole == 0 || whole == sizeof good) return fputs("fuzz FILE.bin ROUNDS SEED; a file of less than 4 MB\n", stderr), 2;
    fclose(file);
    state = (uint64_t)atol(argv[3]);
    for (long round = 0; round < rounds; round++) {
        size_t n = whole;
        memcpy(bad, good, n);
        for (uint32_t i = round ? 1 + below(3) : 0; i > 0 && n > 0; i--) damage(bad, &n);
        unsigned char *model = malloc(n ? n : 1);
        if (!model) return 2;
        memcpy(model, bad, n);
        alarm(10);
        size_t size = story_size(model, n);
        void *memory = size && size <= MOST ? malloc(size) : NULL;
        Story *story = memory ? story_init(memory, model, n) : NULL;
        if (story) {
            StorySettings ways[] = {{0.0f, 0, 1.0f, 0.0f}, {1.0f, 0, 0.95f, 0.0f}, {1.5f, 7, 0.9f, 0.01f}};
            int token = 0, fed = story_feed(story, "One day, 12 cats\xe4\xbd\xa0 'll", 22);
            for (int i = 0; i < 3 && fed >= 0 && token >= 0; i++)
                if ((token = story_sample(story, &ways[i])) >= 0) story_text(story, token, text);
            wrote++;
        } else if (size > MOST) large++;
        else refused++;
        free(memory);
        free(model);
    }
    printf("%ld models: %ld refused, %ld too large, %ld wrote\n", rounds, refused, large, wrote);
    return 0;
}
