// The first layer and the last step. Compiled by NVRTC, without headers; ``kernels.py`` defines CHANNELS, STRIDE and
// PLAIN_STRIDE.

typedef unsigned char byte;
typedef unsigned short half;  // the bits of one
typedef unsigned int half2;

const int SIZE = 112, OUT = (SIZE - 1) / STRIDE + 1;
const int ROW = SIZE * 3;        // bytes of a row of pixels
const int START = 4;             // where a row starts in shared memory, behind a pixel of padding
const int PADDED = START + ROW + 4;
const int ROWS = 2;              // of the output, that a block computes at a time
const int HEIGHT = (ROWS - 1) * STRIDE + 3;  // rows that those are computed from
const int TAPS = 10;             // of a row of the 3x3 kernel: 3 pixels of 3 channels, and one of weight 0
const int DEPTH = 32;            // taps of a kernel, with zeros behind them: two steps of the tensor cores
const int TILES = CHANNELS / 8;
const int THREADS = (OUT + 15) / 16 * 32;
const int EACH = (HEIGHT * ROW / 4 + THREADS - 1) / THREADS;  // words of the bytes for each thread

__device__ half rounded(float value) {
    half bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ half2 rounded_pair(float low, float high) {
    half2 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ void store(half *at, const half2 (&eight)[4]) {
    *(uint4 *)at = make_uint4(eight[0], eight[1], eight[2], eight[3]);
}

__device__ half2 pair(half low, half high) { return low | (half2)high << 16; }

__device__ void multiply_add(float (&sum)[4], const half2 (&a)[4], half2 b0, half2 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Start to load the rows that a strip of the output is computed from, a word for each thread at a time.
__device__ void load(half2 (&words)[EACH], const byte *images, int strip, int strips) {
    const int image = strip / (OUT / ROWS), top = strip % (OUT / ROWS) * ROWS;
#pragma unroll
    for (int each = 0; each < EACH; ++each) {
        const int i = threadIdx.x + each * THREADS, row = top * STRIDE - 1 + i / (ROW / 4);
        const bool inside = strip < strips && i < HEIGHT * ROW / 4 && row >= 0 && row < SIZE;
        words[each] = inside ? ((const half2 *)(images + image * SIZE * ROW + row * ROW))[i % (ROW / 4)] : 0;
    }
}

// Subtract the mean, convolve, multiply by the unit of the weights, add the bias, PRelu; and a batch norm of that.
//
// A warp computes 16 pixels of a row, as a product of their surroundings [16, DEPTH] and the weights [DEPTH, CHANNELS].
// images: [N, 112, 112, 3]; weights: [CHANNELS, DEPTH]; constants: [CHANNELS][bias, slope, scale, shift];
// plain, shifted: [N, OUT, OUT, CHANNELS]. shifted may be null. Of plain, every PLAIN_STRIDE-th pixel and row is written.
extern "C" __global__ void __launch_bounds__(THREADS, 2) first_layer(const byte *images, int strips, float mean_b, float mean_g, float mean_r,
                                       float unit, const half2 *weights, const float4 *constants, half *plain,
                                       half *shifted) {
    __shared__ __align__(16) half pixels[HEIGHT + 1][PADDED];  // the last row is of zeros, for the taps behind the kernel
    __shared__ float4 constant[CHANNELS];
    for (int i = threadIdx.x; i < (HEIGHT + 1) * PADDED; i += blockDim.x) pixels[0][i] = 0;
    for (int i = threadIdx.x; i < CHANNELS; i += blockDim.x) constant[i] = constants[i];
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    const int left = threadIdx.x / 32 * 16 + group, right = left + 8;  // the pixels whose sums this thread has

    // Column n of tile j is channel 32 * (j / 4) + 8 * (n / 2) + 2 * (j % 4) + n % 2, so that what a thread has of
    // four tiles is eight channels side by side: 16 bytes to store at once.
    half2 kernel[TILES][4];
    int offset[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const int tap = step * 8 + member * 2;
        offset[step] = tap < 3 * TAPS ? tap / TAPS * PADDED + tap % TAPS + START - 3 : -1;
#pragma unroll
        for (int j = 0; j < TILES; ++j)
            kernel[j][step] = weights[((j / 4 * 32 + group / 2 * 8 + j % 4 * 2 + group % 2) * DEPTH + tap) / 2];
    }
    half2 next[EACH];  // bytes of the next strip, which are on their way while this one is computed
    load(next, images, blockIdx.x, strips);
    for (int strip = blockIdx.x; strip < strips; strip += gridDim.x) {
        const int image = strip / (OUT / ROWS), top = strip % (OUT / ROWS) * ROWS;
        __syncthreads();
#pragma unroll
        for (int each = 0; each < EACH; ++each) {
            const int i = threadIdx.x + each * THREADS, y = i / (ROW / 4), x = i % (ROW / 4) * 4;
            const int row = top * STRIDE - 1 + y, channel = x % 3;
            const float mean[3] = {channel == 0 ? mean_b : channel == 1 ? mean_g : mean_r,
                                   channel == 0 ? mean_g : channel == 1 ? mean_r : mean_b,
                                   channel == 0 ? mean_r : channel == 1 ? mean_b : mean_g};
            float value[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) value[k] = (float)(next[each] >> 8 * k & 255) - mean[k % 3];
            const bool inside = row >= 0 && row < SIZE;  // the padding is zero after the subtraction
            const uint2 four = make_uint2(inside ? rounded_pair(value[0], value[1]) : 0,
                                          inside ? rounded_pair(value[2], value[3]) : 0);
            if (y < HEIGHT) *(uint2 *)&pixels[y][START + x] = four;
        }
        __syncthreads();
        load(next, images, strip + gridDim.x, strips);
        const int first = min(left, OUT - 1) * STRIDE * 3, second = min(right, OUT - 1) * STRIDE * 3;
        for (int row = 0; row < ROWS; ++row) {
            half2 around[2][4];
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const int tap = offset[k / 2];
                const half *at = tap < 0 ? pixels[HEIGHT] : pixels[row * STRIDE] + tap + (k % 2 ? second : first);
                around[k / 4][k % 4] = pair(at[0], at[1]);
            }
            const int y = top + row;
            const unsigned int line = (image * OUT + y) * OUT;  // 32 bits last for batches of 2,600
#pragma unroll
            for (int j = 0; j < TILES; j += 4) {
                float sums[4][4] = {};
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    multiply_add(sums[k], around[0], kernel[j + k][0], kernel[j + k][1]);
                    multiply_add(sums[k], around[1], kernel[j + k][2], kernel[j + k][3]);
                }
                const int channel = j * 8 + member * 8;
                half2 before[2][4], after[2][4];
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float4 one = constant[channel + 2 * k], two = constant[channel + 2 * k + 1];
#pragma unroll
                    for (int side = 0; side < 2; ++side) {
                        float low = fmaf(sums[k][2 * side], unit, one.x);
                        float high = fmaf(sums[k][2 * side + 1], unit, two.x);
                        low = low > 0 ? low : low * one.y;
                        high = high > 0 ? high : high * two.y;
                        before[side][k] = rounded_pair(low, high);
                        after[side][k] = rounded_pair(fmaf(low, one.z, one.w), fmaf(high, two.z, two.w));
                    }
                }
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int x = side ? right : left;
                    if (x >= OUT) continue;
                    const unsigned int at = (line + x) * CHANNELS + channel;
                    if (y % PLAIN_STRIDE == 0 && x % PLAIN_STRIDE == 0) store(plain + at, before[side]);
                    if (shifted) store(shifted + at, after[side]);
                }
            }
        }
    }
}

// Add up the Gemm's parts, add the bias, divide by the length.
//
// parts: [splits, N, dim]; bias: [dim]; embeddings: [N, dim]. One block for each crop.
extern "C" __global__ void last_step(const float *parts, int splits, int dim, const float *bias, float *embeddings) {
    extern __shared__ float raw[];
    __shared__ float squares[32];
    float square = 0;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = bias[i];
#pragma unroll 7
        for (int split = 0; split < splits; ++split)
            sum += parts[((long long)split * gridDim.x + blockIdx.x) * dim + i];
        raw[i] = sum;
        square += sum * sum;
    }
    for (int step = 16; step; step /= 2) square += __shfl_xor_sync(~0u, square, step);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = square;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < blockDim.x / 32; ++i) total += squares[i];
    const float length = sqrtf(total);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) embeddings[(long long)blockIdx.x * dim + i] = raw[i] / length;
}
