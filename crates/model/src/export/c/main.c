/* The program: prints the text that `flashlm generate` prints. */
#ifndef STORY_NO_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Most bytes of memory that a model may want. */
#ifndef STORY_MEMORY
#define STORY_MEMORY 1073741824
#endif

static const char usage[] =
    "Continues a text.\n\n"
    "  -p, --prompt TEXT       text to continue [default: none]\n"
    "  -n, --tokens N          most tokens to write [default: 200]\n"
    "  -t, --temperature T     0 always takes the most likely token, 1 samples the model's distribution [default: 0.8]\n"
    "      --greedy            the same as -t 0\n"
    "      --top-k K           only the K most likely tokens [default: 0, off]\n"
    "      --top-p P           only the most likely tokens up to this probability in all [default: 0.95; 1 is off]\n"
    "      --min-p P           only tokens at least P times as likely as the most likely [default: 0, off]\n"
    "      --seed N            seed of the random numbers [default: 42]\n"
#ifdef STORY_SEPARATE
    "  -m, --model FILE        the model [default: story.bin]\n"
#endif
    "  -h, --help              this text\n";

static int fail(const char *flag, const char *expected, const char *found) {
    fprintf(stderr, "error: %s: expected %s, found %s\n", flag, expected, found);
    return 2;
}

static int whole(const char *text, uint64_t *out) {
    char *end;
    if (text[0] < '0' || text[0] > '9') return 0;
    *out = strtoull(text, &end, 10);
    return *end == 0;
}

static int real_number(const char *text, float *out) {
    char *end;
    *out = strtof(text, &end);
    return end != text && *end == 0 && *out - *out == 0.0f;
}

#ifdef STORY_SEPARATE
/* All bytes of a file; NULL if there are none, which is told. */
static unsigned char *file_bytes(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    unsigned char *all = NULL;
    size_t room = 0;
    for (*bytes = 0; file && *bytes == room && room <= SIZE_MAX / 2;) {
        room = room ? 2 * room : 1 << 20;
        unsigned char *more = realloc(all, room);
        if (!more) {
            fprintf(stderr, "error: no memory for %lu bytes of %s\n", (unsigned long)room, path);
            exit(1);
        }
        all = more;
        *bytes += fread(all + *bytes, 1, room - *bytes, file);
    }
    if (!file || ferror(file) || *bytes == 0) {
        fprintf(stderr, "error: %s: cannot be read; name the .bin file that came with this program: -m FILE\n", path);
        free(all);
        all = NULL;
    }
    if (file) fclose(file);
    return all;
}
#endif

int main(int argc, char **argv) {
    StorySettings set = {0.8f, 0, 0.95f, 0.0f};
    const char *prompt = "";
    uint64_t tokens = 200, seed = 42, k;
#ifdef STORY_SEPARATE
    const char *path = "story.bin";
#endif
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(flag, "-h") || !strcmp(flag, "--help")) {
            fputs(usage, stdout);
            return 0;
        }
        if (!strcmp(flag, "--greedy")) {
            set.temperature = 0.0f;
            continue;
        }
        static const char *const flags[] = {"-p", "--prompt", "-n", "--tokens", "-t", "--temperature", "--top-k", "--top-p", "--min-p", "--seed",
#ifdef STORY_SEPARATE
            "-m", "--model",
#endif
        };
        int known = -1;
        for (int j = 0; j < (int)(sizeof flags / sizeof *flags); j++) known = strcmp(flag, flags[j]) ? known : j;
        if (known < 0) {
            fprintf(stderr, "error: unknown argument %s\n\n%s", flag, usage);
            return 2;
        }
        if (!value) return fail(flag, "a value after it", "none");
        i++;
        switch (known) {
        case 0: case 1: prompt = value; break;
        case 2: case 3: if (!whole(value, &tokens)) return fail(flag, "a number of tokens", value); break;
        case 4: case 5: if (!real_number(value, &set.temperature) || set.temperature < 0.0f) return fail(flag, "a number of at least 0", value); break;
        case 6: if (!whole(value, &k)) return fail(flag, "a number of tokens", value); set.top_k = k < UINT32_MAX ? (uint32_t)k : UINT32_MAX; break;
        case 7: if (!real_number(value, &set.top_p) || set.top_p <= 0.0f || set.top_p > 1.0f) return fail(flag, "a number in (0, 1]", value); break;
        case 8: if (!real_number(value, &set.min_p) || set.min_p < 0.0f || set.min_p > 1.0f) return fail(flag, "a number in [0, 1]", value); break;
        case 9: if (!whole(value, &seed)) return fail(flag, "a whole number", value); break;
#ifdef STORY_SEPARATE
        default: path = value;
#endif
        }
    }
    if (!story_exact())
        fputs("warning: this build does not round each product and sum by itself, so its texts are not those of flashlm; "
              "build with -std=c11 -ffp-contract=off, on 32-bit x86 with -msse2 -mfpmath=sse too, on s390x with -fexcess-precision=fast\n", stderr);
    size_t bytes;
#ifdef STORY_SEPARATE
    unsigned char *model = file_bytes(path, &bytes);
    if (!model) return 1;
#else
    const unsigned char *model = story_model(&bytes);
#endif
    size_t size = story_size(model, bytes);
    void *memory = size && size <= STORY_MEMORY ? malloc(size) : NULL;
    Story *story = memory ? story_init(memory, model, bytes) : NULL;
    if (!story) {
        if (size > STORY_MEMORY) fprintf(stderr, "error: the model wants %lu bytes of memory: it is damaged, or build with a larger -DSTORY_MEMORY\n", (unsigned long)size);
        else if (size && !memory) fprintf(stderr, "error: no memory for %lu bytes\n", (unsigned long)size);
        else fputs("error: the model is damaged, or none of this version\n", stderr);
        return 1;
    }
    story_reset(story, seed);
    clock_t start = clock();
    int given = story_feed(story, prompt, strlen(prompt));
    if (given < 0) {
        fputs("error: -p: the text is not UTF-8, or has a word longer than STORY_WORD bytes\n", stderr);
        return 2;
    }
    fputs(prompt, stdout);
    uint64_t n = 0;
    int token = 0, ended = 0;
    static char text[STORY_TEXT];
    while (n < tokens && !ended) {
        token = story_sample(story, &set);
        if (token < 0) {
            fputs("\nerror: the logits are no numbers: the weights are damaged\n", stderr);
            return 1;
        }
        n++;
        ended = token == story_eos(story);
        fwrite(text, 1, story_text(story, token, text), stdout);
        fflush(stdout);
    }
    if (!ended) fwrite(text, 1, story_text(story, story_eos(story), text), stdout);
    putchar('\n');
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    fprintf(stderr, "%lu tokens after a prompt of %d in %.3f s, %.0f tokens/s\n", (unsigned long)n, given, seconds,
            (double)(n + (uint64_t)given) / (seconds > 1e-9 ? seconds : 1e-9));
    free(memory);
#ifdef STORY_SEPARATE
    free(model);
#endif
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("error: standard output: not all of the text could be written\n", stderr);
        return 1;
    }
    return 0;
}
#endif
