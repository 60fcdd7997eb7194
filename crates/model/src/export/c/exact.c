/*
 * Float arithmetic: products and sums rounded one by one, sums over a row in 16 lanes and then in halves, so that every machine
 * gives the bits of flashlm.
 */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#define ROUND 12582912.0f

/* Eight lanes in a vector, where the compiler has such. */
#if defined(__GNUC__) && __FLT_EVAL_METHOD__ == 0 && !defined(STORY_PLAIN)
#define EIGHT
typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));
#endif

/* Numbers of the model are little-endian and may lie anywhere. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LITTLE
INLINE uint32_t get32(const unsigned char *p) { uint32_t x; memcpy(&x, p, 4); return x; }
INLINE uint64_t get64(const unsigned char *p) { uint64_t x; memcpy(&x, p, 8); return x; }
INLINE float getf(const unsigned char *p, size_t i) { float x; memcpy(&x, p + 4 * i, 4); return x; }
#else
INLINE uint32_t get32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
INLINE uint64_t get64(const unsigned char *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }
INLINE float getf(const unsigned char *p, size_t i) { uint32_t u = get32(p + 4 * i); float x; memcpy(&x, &u, 4); return x; }
#endif
INLINE uint32_t get16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
INLINE double getd(const unsigned char *p) { uint64_t u = get64(p); double x; memcpy(&x, &u, 8); return x; }
INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float of_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* exp(x): 2^n p(r), x = n ln 2 + r; the argument is clamped to [-87.33, 88.37], NaN stays NaN. */
INLINE float exp_(float x) {
    x = x > 88.37f ? 88.37f : x;
    x = x < -87.33f ? -87.33f : x;
    float t = x * 1.44269504f + ROUND;
    float n = t - ROUND;
    float r = x - n * 0.6933594f - n * -2.1219444e-4f;
    float p = 1.3836846e-3f;
    p = p * r + 8.374816e-3f;
    p = p * r + 4.1668225e-2f;
    p = p * r + 0.1666642f;
    p = p * r + 0.4999999f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * of_bits((bits_of(t) - bits_of(ROUND) + 127u) << 23);
}

/* ln(x) of a normal x > 0: x = 2^n (1 + f), 1 + f between the roots of 1/2 and 2, and a polynomial in f. */
INLINE float ln_(float x) {
    uint32_t root = 0x3f3504f3u, u = bits_of(x) - root + bits_of(1.0f);
    float n = (float)((int32_t)(u >> 23) - 127);
    float f = of_bits((u & 0x7fffffu) + root) - 1.0f;
    float p = 7.0376836e-2f;
    p = p * f - 0.1151461f;
    p = p * f + 0.11676999f;
    p = p * f - 0.12420141f;
    p = p * f + 0.14249323f;
    p = p * f - 0.16668058f;
    p = p * f + 0.20000715f;
    p = p * f - 0.24999994f;
    p = p * f + 0.3333333f;
    float square = f * f;
    return n * 0.6933594f + (f + (n * -2.1219444e-4f - 0.5f * square + square * f * p));
}

INLINE float sigmoid_(float x) { return 1.0f / (1.0f + exp_(-x)); }

INLINE float softplus_(float x) {
    float e = exp_(x < 0.0f ? x : -x);
    float z = e / (2.0f + e), z2 = z * z, series = 1.0f / 17.0f;
    for (int odd = 15; odd > 0; odd -= 2) series = series * z2 + 1.0f / (float)odd;
    return (x < 0.0f ? 0.0f : x) + 2.0f * z * series;
}

/* Rounded to the nearest, halves to even: bit by bit, 24 of them and one to round by. */
static float sqrt_(float x) {
    uint32_t u = bits_of(x);
    if (!(x > 0.0f) || u >= 0x7f800000u) return x == 0.0f || x > 0.0f ? x : of_bits(0x7fc00000u);
    int e = (int)(u >> 23) - 127;
    uint64_t m = u & 0x7fffffu;
    if (e == -127) for (e = -126; m < 0x800000u; e--) m <<= 1;
    else m |= 0x800000u;
    if (e & 1) { m <<= 1; e--; }
    /* m 2^(e-23), e even: its root is sqrt(m 2^25) 2^(e/2 - 24), in [2^24, 2^25). */
    uint64_t root = 0, rest = 0;
    m <<= 25;
    for (int i = 24; i >= 0; i--) {
        rest = rest << 2 | (m >> (2 * i) & 3);
        root <<= 1;
        if (rest > 2 * root) { rest -= 2 * root + 1; root++; }
    }
    uint64_t whole = root >> 1;
    if ((root & 1) && (rest || (whole & 1))) whole++;
    /* A carry goes into the exponent, as it should. */
    return of_bits((uint32_t)((uint64_t)(e / 2 + 126) << 23) + (uint32_t)whole);
}

INLINE float sum_(float *lanes) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static float dot_(const float *restrict x, const float *restrict y, size_t n) {
    float acc[16] = {0};
    size_t at = 0;
    for (; at + 16 <= n; at += 16)
        for (size_t i = 0; i < 16; i++) acc[i] += x[at + i] * y[at + i];
    for (size_t i = 0; at + i < n; i++) acc[i] += x[at + i] * y[at + i];
    return sum_(acc);
}

static float dot_with(const float *restrict x, const unsigned char *restrict y, size_t n) {
    float acc[16] = {0};
    size_t at = 0;
    for (; at + 16 <= n; at += 16)
        for (size_t i = 0; i < 16; i++) acc[i] += getf(y, at + i) * x[at + i];
    for (size_t i = 0; at + i < n; i++) acc[i] += getf(y, at + i) * x[at + i];
    return sum_(acc);
}

static void rmsnorm(float *restrict y, const float *restrict x, const unsigned char *restrict scale, size_t n, float eps) {
    float r = 1.0f / sqrt_(dot_(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * r * getf(scale, i);
}

/* max |x|; NaN where one is. */
static float largest(const float *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u = bits_of(x[i]) & 0x7fffffffu;
        most = u > most ? u : most;
    }
    return of_bits(most);
}

/* The largest of x, -inf of none, NaN where one is. */
static float max_(const float *x, size_t n) {
    int32_t top = INT32_MIN;
    uint32_t most = 0, low = 0xff800000u ^ 0x7fffffffu;
    memcpy(&top, &low, 4);
    for (size_t i = 0; i < n; i++) {
        uint32_t u = bits_of(x[i]), sign = u >> 31 ? 0x7fffffffu : 0u, turned = u ^ sign;
        int32_t order;
        memcpy(&order, &turned, 4);
        top = order > top ? order : top;
        most = (u & 0x7fffffffu) > most ? u & 0x7fffffffu : most;
    }
    if (most > 0x7f800000u) return of_bits(most);
    uint32_t u;
    memcpy(&u, &top, 4);
    return of_bits(u >> 31 ? u ^ 0x7fffffffu : u);
}

STORY_API int story_exact(void) {
    volatile float a = 1.0f + 1.0f / 4096.0f, b = -1.0f - 1.0f / 2048.0f;
    float x = a, y = b;
    return x * x + y == 0.0f;
}
