/*
 * Rings of keys: the row after p others of its document lies in slot p mod slots. There are some slots more than a row sees; what is in one that
 * it does not see has no weight. Keys lie in blocks of 16 slots, column by column.
 */
static uint32_t slots_of(uint32_t window) { return (window + 15 + 15) / 16 * 16; }

/* The slots that a row sees: those before low_end and those before high_end, and of whole blocks, how many slots anything has been put into. */
typedef struct {
    size_t low, low_end, high, high_end, used;
} Seen;

/* Of the last `window` of `rows` rows. */
static Seen seen(uint64_t rows, uint32_t window) {
    size_t slots = slots_of(window), end = (size_t)((rows - 1) % slots) + 1, count = rows < window ? (size_t)rows : window;
    Seen all = {end - count, end, end, end, rows < slots ? ((size_t)rows + 15) / 16 * 16 : slots};
    if (count > end) {
        all.low = 0;
        all.high = slots + end - count;
        all.high_end = slots;
    }
    return all;
}

/* The first column of a key. */
INLINE float *key_of(float *keys, size_t slot, size_t d) { return keys + slot / 16 * 16 * d + slot % 16; }

/* The scores of the keys of n blocks. */
INLINE void score_blocks(float *restrict w, const float *restrict q, const float *restrict keys, size_t d, size_t n) {
#ifdef EIGHT
    Eight acc[4] = {{0}, {0}, {0}, {0}}, k;
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < 2 * n; j++) {
            memcpy(&k, keys + j / 2 * 16 * d + 16 * i + j % 2 * 8, 32);
            acc[j] += q[i] * k;
        }
    for (size_t j = 0; j < 2 * n; j++) memcpy(w + 8 * j, &acc[j], 32);
#else
    for (size_t b = 0; b < n; b++, w += 16, keys += 16 * d) {
        for (size_t r = 0; r < 16; r++) w[r] = 0.0f;
        for (size_t i = 0; i < d; i++)
            for (size_t r = 0; r < 16; r++) w[r] += q[i] * keys[16 * i + r];
    }
#endif
}

/* The scores of all slots that are used, and the largest of those that are seen. */
static float scores(float *restrict w, const float *restrict q, const float *restrict keys, size_t d, const Seen *all) {
    size_t at = 0;
    for (; at + 32 <= all->used; at += 32) score_blocks(w + at, q, keys + at * d, d, 2);
    if (at < all->used) score_blocks(w + at, q, keys + at * d, d, 1);
    float one = max_(w + all->low, all->low_end - all->low), other = max_(w + all->high, all->high_end - all->high);
    return one > other || one != one ? one : other;
}
