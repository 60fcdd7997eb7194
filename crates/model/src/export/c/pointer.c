/*
 * Pointers into the text. The row x before the logits has the key k = x + W x and the query q = by x; with s_c = q . k_c + bias of the last
 * `window` rows before, z_v <- ln(exp(z_v) + sum over c after which token v stood of exp(s_c)). Where the model knows words, a token after one
 * that opens (a line, a quotation mark) is read as its twin, which has a space before it or has none.
 */
typedef struct {
    uint32_t window; /* 0: none */
    const unsigned char *key;
    float by, bias;
    float *keys;
    uint32_t *next; /* the token after the row of each slot, as it is read; after the last row, whether it opens */
    const unsigned char *words; /* of each token its twin, and in the highest bit whether it opens; or none */
} Pointer;

static uint32_t opens(const Pointer *p, uint32_t token) { return p->words ? get32(p->words + 4 * (size_t)token) >> 31 : 0; }
static uint32_t read_as(const Pointer *p, uint32_t after_open, uint32_t token) {
    return p->words && after_open ? get32(p->words + 4 * (size_t)token) & 0x7fffffff : token;
}

/* Takes in the row of a token after `past` others. */
static void keep_row(const Pointer *p, const float *x, size_t d, uint32_t token, uint32_t past) {
    uint32_t slots = slots_of(p->window);
    float *k = key_of(p->keys, past % slots, d);
    if (past > 0) {
        uint32_t *next = &p->next[(past - 1) % slots];
        *next = read_as(p, *next, token);
    }
    p->next[past % slots] = opens(p, token);
    for (size_t i = 0; i < d; i++) k[16 * i] = dot_with(x, p->key + 4 * i * d, d) + x[i];
}

/* Changes the logits z of the row of a token after `past` others; w of all slots and mass of all tokens are working memory. */
static void point(const Pointer *p, float *restrict z, const float *q, float *restrict w, float *restrict mass, size_t d, uint32_t token, uint32_t past) {
    if (past == 0) return;
    uint32_t open = opens(p, token);
    Seen all = seen(past, p->window);
    /* From the oldest on. */
    size_t starts[2] = {all.high, all.low}, ends[2] = {all.high_end, all.low_end};
    /* Adding the bias keeps the order of numbers. */
    float top = scores(w, q, p->keys, d, &all) + p->bias;
    for (size_t i = 0; i < all.used; i++) w[i] = exp_(w[i] + p->bias - top);
    for (int run = 0; run < 2; run++)
        for (size_t i = starts[run]; i < ends[run]; i++) mass[read_as(p, open, p->next[i])] = 0.0f;
    for (int run = 0; run < 2; run++)
        for (size_t i = starts[run]; i < ends[run]; i++) mass[read_as(p, open, p->next[i])] += w[i];
    for (int run = 0; run < 2; run++)
        for (size_t i = starts[run]; i < ends[run]; i++) {
            uint32_t v = read_as(p, open, p->next[i]);
            float m = mass[v], a = z[v] > top ? z[v] : top;
            if (m == 0.0f) continue;
            z[v] = a + ln_(exp_(z[v] - a) + exp_(top - a) * m);
            mass[v] = 0.0f;
        }
}
