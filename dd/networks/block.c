/* The functions of block.py that go over the maps of a block's convolution, for float and for double.

   A map of h x w values is read and written once and stays in the cache meanwhile.  Maps are independent, so bits do
   not depend on the number of threads.  Symbols as in block.py; "cells" are the h/2 x w/2 values of a pooled map. */
#ifndef T

#include <math.h>
#include <stdlib.h>

#define RUN 1024 /* values that are summed in T; sums of runs are added in double */

#define T float
#define NAMED(function) function##_float
#include "block.c"
#undef T
#undef NAMED
#define T double
#define NAMED(function) function##_double
#include "block.c"

#else

/* One row of cells, a quarter of each twice. */
static inline void NAMED(spread)(long w, const T *cells, T *row)
{
    for (long j = 0; j < w / 2; j++)
        row[2 * j] = row[2 * j + 1] = (T)0.25 * cells[j];
}

/* output (maps, h/2, w/2), mean (maps) and r (maps) of x (maps, h, w) */
void NAMED(pooled)(int threads, long maps, long channels, long h, long w, double eps, const T *x, const T *scale,
                   const T *shift, T *output, T *mean, T *r)
{
    long m = h * w;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < maps; i++) {
        const T *in = x + i * m;
        double sum = 0, squares = 0;
        for (long from = 0; from < m; from += RUN) {
            long to = from + RUN < m ? from + RUN : m;
            T part = 0;
#pragma omp simd reduction(+ : part)
            for (long j = from; j < to; j++)
                part += in[j];
            sum += part;
        }
        T center = sum / m;
        for (long from = 0; from < m; from += RUN) {
            long to = from + RUN < m ? from + RUN : m;
            T part = 0;
#pragma omp simd reduction(+ : part)
            for (long j = from; j < to; j++)
                part += (in[j] - center) * (in[j] - center);
            squares += part;
        }
        mean[i] = center;
        r[i] = 1 / sqrt(squares / m + eps);
        T slope = scale[i % channels] * r[i], offset = shift[i % channels] - slope * center;
        for (long row = 0; row < h / 2; row++) {
            const T *upper = in + 2 * row * w, *lower = upper + w;
            T *out = output + (i * (h / 2) + row) * (w / 2);
            for (long j = 0; j < w / 2; j++) {
                T a = slope * upper[2 * j] + offset, b = slope * upper[2 * j + 1] + offset;
                T c = slope * lower[2 * j] + offset, d = slope * lower[2 * j + 1] + offset;
                out[j] = (T)0.25 * ((a < 0 ? 0 : a) + (b < 0 ? 0 : b) + (c < 0 ? 0 : c) + (d < 0 ? 0 : d));
            }
        }
    }
}

/* dx (maps, h, w), q (maps) and p (maps) from d (maps, h/2, w/2) */
void NAMED(gradient)(int threads, long maps, long channels, long h, long w, const T *d, const T *x, const T *mean,
                     const T *r, const T *scale, const T *shift, T *dx, T *q, T *p)
{
    long m = h * w;
#pragma omp parallel num_threads(threads)
    {
        T *twice = malloc(w * sizeof(T));
#pragma omp for schedule(static)
        for (long i = 0; i < maps; i++) {
            T center = mean[i], inverse = r[i];
            T slope = scale[i % channels] * inverse, offset = shift[i % channels] - slope * center;
            double sum = 0, product = 0;
            for (long row = 0; row < h; row++) {
                const T *in = x + i * m + row * w;
                T *g = dx + i * m + row * w, part = 0, other = 0;
                if (row % 2 == 0)
                    NAMED(spread)(w, d + (i * h + row) / 2 * (w / 2), twice);
#pragma omp simd reduction(+ : part, other)
                for (long j = 0; j < w; j++) {
                    T here = slope * in[j] + offset <= 0 ? 0 : twice[j];
                    g[j] = here;
                    part += here;
                    other += here * ((in[j] - center) * inverse);
                }
                sum += part;
                product += other;
            }
            p[i] = sum / m;
            q[i] = product / m;
            const T *in = x + i * m;
            T *out = dx + i * m, first = p[i], second = q[i];
#pragma omp simd
            for (long j = 0; j < m; j++)
                out[j] = slope * (out[j] - first - second * ((in[j] - center) * inverse));
        }
        free(twice);
    }
}

/* by_d (maps, h/2, w/2), by_x (maps, h, w), r k (maps) and dx (maps, h, w) from the cotangents u (maps, h, w), v and
   by_shift (channels), which is the w of block.py */
void NAMED(second)(int threads, long maps, long channels, long h, long w, const T *u, const T *v, const T *by_shift,
                   const T *d, const T *x, const T *mean, const T *r, const T *scale, const T *shift, T *by_d, T *by_x,
                   T *rk, T *dx)
{
    long m = h * w;
#pragma omp parallel num_threads(threads)
    {
        T *twice = malloc(w * sizeof(T)), *sums = malloc(w * sizeof(T));
#pragma omp for schedule(static)
        for (long i = 0; i < maps; i++) {
            T center = mean[i], inverse = r[i];
            T slope = scale[i % channels] * inverse, offset = shift[i % channels] - slope * center;
            double sum_g = 0, sum_gx = 0, sum_u = 0, sum_ux = 0, sum_ug = 0;
            for (long row = 0; row < h; row++) {
                const T *in = x + i * m + row * w, *to = u + i * m + row * w;
                T *g = dx + i * m + row * w, part_g = 0, part_gx = 0, part_u = 0, part_ux = 0, part_ug = 0;
                if (row % 2 == 0)
                    NAMED(spread)(w, d + (i * h + row) / 2 * (w / 2), twice);
#pragma omp simd reduction(+ : part_g, part_gx, part_u, part_ux, part_ug)
                for (long j = 0; j < w; j++) {
                    T here = slope * in[j] + offset <= 0 ? 0 : twice[j], xhat = (in[j] - center) * inverse;
                    g[j] = here;
                    part_g += here;
                    part_gx += here * xhat;
                    part_u += to[j];
                    part_ux += to[j] * xhat;
                    part_ug += to[j] * here;
                }
                sum_g += part_g;
                sum_gx += part_gx;
                sum_u += part_u;
                sum_ux += part_ux;
                sum_ug += part_ug;
            }
            T p = sum_g / m, q = sum_gx / m, s = sum_u / m, t = sum_ux / m;
            T k = sum_ug / m - sum_u / m * (sum_g / m) - sum_ux / m * (sum_gx / m);
            rk[i] = inverse * k;
            T of_g = v[i % channels] - slope * t, of_u = -slope * q; /* e = of_g g + of_u u, du = slope u + of_g xhat + constant */
            T mean_e = of_g * p + of_u * s, mean_ex = of_g * q + of_u * t;
            T of_xhat = inverse * mean_ex + slope * inverse * k;
            T constant = by_shift[i % channels] - slope * s;
            for (long row = 0; row < h; row++) {
                const T *in = x + i * m + row * w, *to = u + i * m + row * w;
                T *g = dx + i * m + row * w, *out = by_x + i * m + row * w;
#pragma omp simd
                for (long j = 0; j < w; j++) {
                    T xhat = (in[j] - center) * inverse, here = g[j];
                    T du = slope * in[j] + offset <= 0 ? 0 : slope * to[j] + of_g * xhat + constant;
                    sums[j] = row % 2 ? sums[j] + du : du;
                    out[j] = inverse * (of_g * here + of_u * to[j] - mean_e) - of_xhat * xhat;
                    g[j] = slope * (here - p - q * xhat);
                }
                if (row % 2) {
                    T *cells = by_d + (i * h + row) / 2 * (w / 2);
                    for (long j = 0; j < w / 2; j++)
                        cells[j] = (T)0.25 * (sums[2 * j] + sums[2 * j + 1]);
                }
            }
        }
        free(twice);
        free(sums);
    }
}

#endif
