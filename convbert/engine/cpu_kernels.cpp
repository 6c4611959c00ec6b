// What lies between a block's products on a CPU, float32, each row in one pass. cpu_kernels.py compiles and calls it.
//
// Rows are shared by the threads; a row's result does not depend on how many there are, nor on the other rows. Loops
// over a row are such that the compiler makes vectors of them: without calls that stay calls, and without an early end.
//
// Names are those of the Python functions, whose tensors lie row by row.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Index = std::int64_t;

constexpr Index LEAST_SHARED = 1 << 14;  // numbers, for which it pays to wake other threads

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int N_VECTORS = 4;  // whose sums stay in registers

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

inline Vector vector_at(const float* first) {
    Vector found;
    std::memcpy(&found, first, sizeof found);
    return found;
}

// e^x for x <= 0, to 2e-7 of it: 2^n times the Taylor series around 0 of what is left, which is at most ln(2) / 2.
inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float n = std::rint(x * 1.44269504f);
    const float rest = x - n * 0.693359375f + n * 2.12194440e-4f;
    float sum = (rest * (1.0f / 5040) + 1.0f / 720) * rest + 1.0f / 120;
    sum = ((sum * rest + 1.0f / 24) * rest + 1.0f / 6) * rest + 0.5f;
    sum = (sum * rest + 1.0f) * rest + 1.0f;
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;  // nan times any power is nan
}

// x · Φ(x), with erf to 4e-7 by the rational function of Eigen and XLA, whose tails are those at 4.
inline float gelu_of(float x) {
    float z = x * 0.707106781f;
    z = z < -4.0f ? -4.0f : z;
    z = z > 4.0f ? 4.0f : z;
    const float y = z * z;
    float top = (y * -2.72614225801306e-10f + 2.77068142495902e-08f) * y - 2.10102402082508e-06f;
    top = ((top * y - 5.69250639462346e-05f) * y - 7.34990630326855e-04f) * y - 2.95459980854025e-03f;
    top = top * y - 1.60960333262415e-02f;
    float bottom = (y * -1.45660718464996e-05f - 2.13374055278905e-04f) * y - 1.68282697438203e-03f;
    bottom = (bottom * y - 7.37332916720468e-03f) * y - 1.42647390514189e-02f;
    return 0.5f * x * (1.0f + z * top / bottom);
}

void quantise_row(const float* x, Index width, int n_levels, std::uint8_t* levels, float* scale, float* zero) {
    float low = 0, high = 0, none = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : none)
    for (Index i = 0; i < width; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        none += x[i] * 0.0f;  // nan where a number is none or infinite, and with it the whole row
    }
    const float step = std::max((high - low) / static_cast<float>(n_levels - 1), 1e-12f) + none;
    const float middle = std::rint(-low / step), steps = 1.0f / step, most = static_cast<float>(n_levels - 1);
    *scale = step;
    *zero = middle;
#pragma omp simd
    for (Index i = 0; i < width; i++) {
        const float level = std::rint(x[i] * steps + middle);
        levels[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(level < most ? (level > 0 ? level : 0) : most));
    }
}

// A row's numbers from its product of integers, in place.
inline void rescale_row(float* row, float scale, float zero, const float* sums, const float* bias, Index width) {
#pragma omp simd
    for (Index i = 0; i < width; i++) row[i] = (row[i] - zero * sums[i]) * scale + bias[i];
}

// out[i] = Σ over taps of weights[tap * weight_step + i or 0] · rows[tap * row_step + i]
template <bool IS_BY_COLUMN>
inline void sum_taps(const float* weights, Index weight_step, const float* rows, Index row_step, Index n_taps,
                     Index width, float* out) {
    Index first = 0;
    for (; first + N_VECTORS * LANES <= width; first += N_VECTORS * LANES) {
        Vector sums[N_VECTORS] = {};
        for (Index tap = 0; tap < n_taps; tap++)
            for (int i = 0; i < N_VECTORS; i++) {
                const Index column = first + i * LANES;
                const Vector row = vector_at(rows + tap * row_step + column);
                if constexpr (IS_BY_COLUMN)
                    sums[i] += vector_at(weights + tap * weight_step + column) * row;
                else
                    sums[i] += weights[tap * weight_step] * row;
            }
        std::memcpy(out + first, sums, sizeof sums);
    }
    for (Index i = first; i < width; i++) {
        float sum = 0;
        for (Index tap = 0; tap < n_taps; tap++)
            sum += weights[tap * weight_step + (IS_BY_COLUMN ? i : 0)] * rows[tap * row_step + i];
        out[i] = sum;
    }
}

// The taps that fall on a token's own record: from the first to before the last.
struct Taps {
    Index first, last;
    Taps(const std::int32_t* sides, Index n_taps)
        : first(std::max<Index>(0, n_taps / 2 - sides[0])), last(std::min<Index>(n_taps, n_taps / 2 + sides[1] + 1)) {}
};

// Each head's own: n_heads stretches of n_taps.
void softmax(const float* logits, Index n_heads, Index n_taps, float* kernels) {
    for (Index head = 0; head < n_heads; head++) {
        const float* own = logits + head * n_taps;
        const float most = *std::max_element(own, own + n_taps);
        for (Index tap = 0; tap < n_taps; tap++) kernels[head * n_taps + tap] = own[tap] - most;
    }
#pragma omp simd
    for (Index i = 0; i < n_heads * n_taps; i++) kernels[i] = exp_of(kernels[i]);
    for (float *own = kernels, *end = kernels + n_heads * n_taps; own < end; own += n_taps) {
        float sum = 0;
        for (Index tap = 0; tap < n_taps; tap++) sum += own[tap];
        for (Index tap = 0; tap < n_taps; tap++) own[tap] /= sum;
    }
}

}  // namespace

extern "C" {

void quantised(const float* x, std::uint8_t* levels, float* scale, float* zero, Index n_rows, Index width,
               Index n_levels, Index n_threads) {
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1 && n_rows * width >= LEAST_SHARED)
    for (Index row = 0; row < n_rows; row++)
        quantise_row(x + row * width, width, n_levels, levels + row * width, scale + row, zero + row);
}

void rescaled(float* product, const float* scale, const float* zero, const float* sums, const float* bias,
              Index n_rows, Index width, Index n_threads) {
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1 && n_rows * width >= LEAST_SHARED)
    for (Index row = 0; row < n_rows; row++)
        rescale_row(product + row * width, scale[row], zero[row], sums, bias, width);
}

void gelu_quantised(float* product, const float* scale, const float* zero, const float* sums, const float* bias,
                    std::uint8_t* levels, float* new_scale, float* new_zero, Index n_rows, Index width, Index n_levels,
                    Index n_threads) {
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1 && n_rows * width >= LEAST_SHARED)
    for (Index row = 0; row < n_rows; row++) {
        float* own = product + row * width;
        const float own_scale = scale[row], own_zero = zero[row];
#pragma omp simd
        for (Index i = 0; i < width; i++) own[i] = gelu_of((own[i] - own_zero * sums[i]) * own_scale + bias[i]);
        quantise_row(own, width, n_levels, levels + row * width, new_scale + row, new_zero + row);
    }
}

void normalised(float* product, const float* scale, const float* zero, const float* sums, const float* bias,
                const float* residual, const float* weight, const float* shift, Index n_rows, Index width, float eps,
                Index n_threads) {
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1 && n_rows * width >= LEAST_SHARED)
    for (Index row = 0; row < n_rows; row++) {
        float* own = product + row * width;
        const float* added = residual + row * width;
        rescale_row(own, scale[row], zero[row], sums, bias, width);
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (Index i = 0; i < width; i++) sum += own[i] += added[i];
        const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
        for (Index i = 0; i < width; i++) squares += (own[i] - mean) * (own[i] - mean);
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
#pragma omp simd
        for (Index i = 0; i < width; i++) own[i] = (own[i] - mean) * factor * weight[i] + shift[i];
    }
}

void depthwise_taps(const float* x, const float* taps, const std::int32_t* sides, float* mixed, Index n_rows,
                    Index width, Index n_taps, Index n_threads) {
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1 && n_rows * width >= LEAST_SHARED)
    for (Index row = 0; row < n_rows; row++) {
        const Taps own(sides + 2 * row, n_taps);
        sum_taps<true>(taps + own.first * width, width, x + (row + own.first - n_taps / 2) * width, width,
                       own.last - own.first, width, mixed + row * width);
    }
}

void mixed_taps(float* context, const float* logits, const float* values, const std::int32_t* sides, Index context_step,
                Index values_step, Index n_rows, Index n_heads, Index head_width, Index n_taps, Index n_threads) {
#pragma omp parallel num_threads(n_threads) if (n_threads > 1 && n_rows * n_heads * head_width >= LEAST_SHARED)
    {
        std::vector<float> kernels(n_heads * n_taps);  // of one token
#pragma omp for
        for (Index row = 0; row < n_rows; row++) {
            softmax(logits + row * n_heads * n_taps, n_heads, n_taps, kernels.data());
            const Taps own(sides + 2 * row, n_taps);
            const float* reached = values + (row + own.first - n_taps / 2) * values_step;
            for (Index head = 0; head < n_heads; head++)
                sum_taps<false>(kernels.data() + head * n_taps + own.first, 1, reached + head * head_width, values_step,
                                own.last - own.first, head_width, context + row * context_step + head * head_width);
        }
    }
}

}  // extern "C"
