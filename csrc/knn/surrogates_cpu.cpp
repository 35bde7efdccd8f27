#include <cstdint>
#include <utility>
#include <vector>

#include "common/keyed.h"
#include "common/parallel.h"
#include "knn/surrogates.h"

namespace echo_ext {
namespace {

DrawKey surrogate_key(int64_t seed, int64_t stream, int64_t surrogate) {
  return draw_key(static_cast<uint64_t>(seed) + mix64(static_cast<uint64_t>(stream)), static_cast<uint64_t>(surrogate));
}

// One local permutation. `taken` and `choices` are buffers for num_points and num_neighbors values.
void permute_locally(const KnnLocalPermutations& p, const int64_t* neighbors, DrawKey key, std::vector<bool>& taken,
                     std::vector<int64_t>& choices, int64_t* order) {
  const Bijection rows(static_cast<uint32_t>(p.num_points));
  const uint64_t choice_key = mix64(static_cast<uint64_t>(key.start) << 32 | key.step);
  taken.assign(taken.size(), false);
  PollCounter polls;
  for (int64_t turn = 0; turn < p.num_points; ++turn) {
    const int64_t row = rows(key, static_cast<uint32_t>(turn));
    const int64_t* own = neighbors + row * p.num_neighbors;
    choices.assign(own, own + p.num_neighbors);
    // The neighbors in a random order, of which each place is drawn only when the one before it is taken.
    int64_t chosen = own[0];
    for (int64_t i = 0; i < p.num_neighbors; ++i) {
      const auto left = static_cast<uint64_t>(p.num_neighbors - i);
      const uint64_t hash = mix64(choice_key + static_cast<uint64_t>(row * p.num_neighbors + i)) >> 32;
      std::swap(choices[i], choices[i + static_cast<int64_t>(hash * left >> 32)]);
      chosen = choices[i];
      if (!taken[chosen]) break;
    }
    taken[chosen] = true;
    order[row] = chosen;
    polls.add(p.num_neighbors);
  }
}

}  // namespace

void knn_permutations(const KnnPermutations& p) {
  const Bijection order(static_cast<uint32_t>(p.size));
  parallel_for(p.num, worthwhile_threads(p.num * p.length * 32, p.num_threads), [&](int64_t surrogate, int) {
    const DrawKey key = surrogate_key(p.seed, p.stream, p.first + surrogate);
    int64_t* out = p.orders + surrogate * p.length;
    for_each_piece(0, p.length, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = order(key, static_cast<uint32_t>(i));
    });
  });
}

void knn_local_permutations(const KnnLocalPermutations& p) {
  const int64_t work = p.num * p.batch * p.num_points * (32 + p.num_neighbors);
  parallel_for(p.num, worthwhile_threads(work, p.num_threads), [&](int64_t surrogate, int) {
    const DrawKey key = surrogate_key(p.seed, p.stream, p.first + surrogate);
    std::vector<bool> taken(static_cast<size_t>(p.num_points));
    std::vector<int64_t> choices;
    for (int64_t item = 0; item < p.batch; ++item)
      permute_locally(p, p.neighbors + item * p.num_points * p.num_neighbors, key, taken, choices,
                      p.orders + (surrogate * p.batch + item) * p.num_points);
  });
}

}  // namespace echo_ext
