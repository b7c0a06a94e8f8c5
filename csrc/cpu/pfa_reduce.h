// PFA's first pass backward, for groups of rows of one sample: what the map hands to its factors, by row, by
// step and by column. Tiles of the map's gradient lie in the cache and are read three times there.
#pragma once
#include "cpu/pfa_rows.h"

namespace attsnn {

inline constexpr int64_t kTileValues = 16384, kTileRows = 64, kTileColumns = 1536;
inline constexpr int64_t kTermsInARow = 256;  // more would lose digits

// Sums over groups of rows: [R, width], [I, ranks], [T, ranks].
template <class Real>
struct FactorSums {
  Real *column, *row, *step;
};

template <class Real>
int64_t size_of_tile(const Factors<Real>& factors) {
  return kTileRows * (std::min(kTileColumns, factors.width) + 2 * factors.ranks);
}

template <class Io, class Real>
struct ReduceLoops {
  // `across`: the columns' factors once more, [J, ranks].
  template <int kBytes>
  static ATTSNN_INLINE void run(const PfaBackward<Io, Real>* call, const Factors<Real>* factors,
                                const Real* across, const FactorSums<Real>* sums, int64_t n, int64_t begin,
                                int64_t end, Real* scratch) {
    const PfaShape& shape = call->shape;
    const int64_t columns = shape.columns(), rank = factors->rank, ranks = factors->ranks;
    std::fill_n(sums->column, rank * factors->width, Real(0));
    std::fill_n(sums->row, shape.rows() * ranks, Real(0));
    std::fill_n(sums->step, shape.maps.steps * ranks, Real(0));
    for (int64_t first = 0; first < columns; first += kTileColumns) {
      const int64_t length = std::min(kTileColumns, columns - first), width = padded<Real>(length);
      const int64_t rows = std::clamp<int64_t>(kTileValues / width, kRowsPerByte, kTileRows);
      Real *tile = scratch, *weights = tile + rows * width, *products = weights + rows * ranks;
      for (int64_t i = 0; i < rows; ++i) std::fill_n(tile + i * width + length, width - length, Real(0));
      for (int64_t g = begin; g < end; g += rows / kRowsPerByte) {
        const int64_t last = std::min(end, g + rows / kRowsPerByte);
        const int64_t count =
            std::min(last * kRowsPerByte, shape.maps.steps * shape.rows()) - g * kRowsPerByte;
        fill<kBytes>(*call, *factors, n, g, last, first, length, width, tile, weights);
        // column[r] += sum over rows of weights * tile
        over_rows<kBytes>(rank, [&](auto m, int64_t r) ATTSNN_INLINED {
          over_columns<kBytes, Real>(width, [&](auto v, int64_t j, int64_t end_of) ATTSNN_INLINED {
            SumBlock<kBytes, Real, m.value, v.value> block;
            Real* to = sums->column + r * factors->width + first + j;
            block.add(count, weights + r, 1, ranks, RowsApart<const Real>{tile + j, width}, end_of);
            block.add_to(to, factors->width, end_of);
          });
        });
        // products[row][r] = sum over columns of tile * factor
        if (few_ranks<kBytes>(rank, width))
          products_of_rows<kBytes, Real>(
              count, rank, width, {tile, width}, {factors->column + first, factors->width},
              [&](int64_t row, int64_t r, Real sum) ATTSNN_INLINED { products[row * ranks + r] = sum; });
        else
          for (int64_t part = 0; part < length; part += kTermsInARow)
            product<kBytes, Real>(part > 0, count, ranks, std::min(kTermsInARow, length - part), tile + part,
                                  width, 1, {across + (first + part) * ranks, ranks}, products, ranks);
        spread(shape, *factors, g * kRowsPerByte, count, products, *sums);
      }
    }
  }

 private:
  // Where a vector of ranks would be mostly padding, the columns are summed in vectors, and each vector then.
  template <int kBytes>
  static ATTSNN_INLINE bool few_ranks(int64_t rank, int64_t width) {
    return rank <= 8 && width >= 6 * VectorOf<Real, kBytes>::kWidth;
  }

  // Rows of the map's gradient, whose padding stays as it is, and their factors.
  template <int kBytes>
  static ATTSNN_INLINE void fill(const PfaBackward<Io, Real>& call, const Factors<Real>& factors, int64_t n,
                                 int64_t begin, int64_t end, int64_t first, int64_t length, int64_t width,
                                 Real* tile, Real* weights) {
    const PfaShape& shape = call.shape;
    const int64_t columns = shape.columns();
    for (int64_t g = begin; g < end; ++g) {
      const RowGroup group(shape, g);
      const int64_t at = (g - begin) * kRowsPerByte;
      group.weigh_by<kBytes>(factors, weights + at * factors.ranks);
      if constexpr (std::is_same_v<Io, Real>)
        if (group.together && call.fusion != Fusion::kAdd && length >= VectorOf<Real, kBytes>::kWidth) {
          const auto with = [&](Fusion fusion) ATTSNN_INLINED {
            rows_in_vectors<kBytes>(fusion, length, group.apart(call.grad_y, n, columns).walk(0, first),
                                    group.apart(call.x, n, columns).walk(0, first),
                                    {tile + at * width, width});
          };
          call.fusion == Fusion::kMultiply ? with(Fusion::kMultiply) : with(Fusion::kResidual);
          continue;
        }
      for (int m = 0; m < group.count; ++m) {
        const int64_t t = group.t(m), place = group.i(m) * columns + first;
        const Io* __restrict grad = call.grad_y.at(t, n) + place;
        Real* __restrict to = tile + (at + m) * width;
        if (call.fusion == Fusion::kAdd) {
          const uint8_t* __restrict bits = call.bits + (n * shape.groups() + g) * columns + first;
#pragma GCC ivdep
          for (int64_t j = 0; j < length; ++j) to[j] = (bits[j] >> m & 1) != 0 ? Real(grad[j]) : Real(0);
          continue;
        }
        const Io* __restrict x = call.x.at(t, n) + place;
        const auto with = [&](Fusion fusion) ATTSNN_INLINED {
#pragma GCC ivdep
          for (int64_t j = 0; j < length; ++j) to[j] = to_map(fusion, Real(grad[j]), Real(x[j]));
        };
        call.fusion == Fusion::kMultiply ? with(Fusion::kMultiply) : with(Fusion::kResidual);
      }
    }
  }

  // Eight rows. The last vector ends where the row does.
  template <int kBytes>
  static ATTSNN_INLINE void rows_in_vectors(Fusion fusion, int64_t length, RowWalk<const Real> grad,
                                            RowWalk<const Real> x, RowWalk<Real> to) {
    constexpr int64_t kWidth = VectorOf<Real, kBytes>::kWidth;
    for (int m = 0; m < kRowsPerByte; ++m, grad.next(), x.next(), to.next()) {
      const auto at = [&](int64_t j) ATTSNN_INLINED {
        Vector<Real, kBytes> own, value;
        load_vector(grad.at + j, own);
        load_vector(x.at + j, value);
        store_vector(to_map(fusion, own, value), to.at + j);
      };
      for (int64_t j = 0; j + kWidth <= length; j += kWidth) at(j);
      at(length - kWidth);
    }
  }

  // The rows' products to the sums by row and by step; those of a step in a sum of the tile's own, for a long
  // row of additions loses digits.
  static ATTSNN_INLINE void spread(const PfaShape& shape, const Factors<Real>& factors, int64_t first,
                                   int64_t count, const Real* products, const FactorSums<Real>& sums) {
    const int64_t rows = shape.rows(), ranks = factors.ranks, end = first + count;
    for (int64_t begin = first, next; begin < end; begin = next) {
      const int64_t t = begin / rows;
      next = std::min(end, (t + 1) * rows);
      const Real* __restrict step = factors.step + t * ranks;
      Real of_step[kMaxRank] = {};
      for (int64_t q = begin; q < next; ++q) {
        const int64_t i = q - t * rows;
        const Real* __restrict own = products + (q - first) * ranks, * __restrict row =
                                                                         factors.row + i * ranks;
        Real* __restrict by_row = sums.row + i * ranks;
#pragma GCC ivdep
        for (int64_t r = 0; r < ranks; ++r) {
          by_row[r] += step[r] * own[r];
          of_step[r] += row[r] * own[r];
        }
      }
      for (int64_t r = 0; r < ranks; ++r) sums.step[t * ranks + r] += of_step[r];
    }
  }
};

}  // namespace attsnn
