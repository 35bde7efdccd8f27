// Surrogate data for tests of independence: orders of the rows of a variable that keep what the null hypothesis allows.
// They are keyed functions of (seed, surrogate), so any surrogate can be made without those before it.
#pragma once

#include <cstdint>

namespace echo_ext {

// The first `length` terms of a random order of [0, size), for each of `num` surrogates from `first` on.
struct KnnPermutations {
  int64_t seed;
  int64_t stream;  // orders of different streams are independent
  int64_t first;
  int64_t num;
  int64_t size;     // at most 2^31 - 1
  int64_t length;   // at most size
  int64_t* orders;  // (num, length)
  int num_threads;
};

// Local permutations (Runge 2018): in a random order of the rows, each takes a random one of its neighbors that no row
// has taken yet, or any of them if all are taken.
struct KnnLocalPermutations {
  int64_t seed;
  int64_t stream;
  int64_t first;
  int64_t num;
  const int64_t* neighbors;  // (batch, num_points, num_neighbors): the neighbors of each row, itself among them
  int64_t batch;
  int64_t num_points;
  int64_t num_neighbors;
  int64_t* orders;  // (num, batch, num_points)
  int num_threads;
};

void knn_permutations(const KnnPermutations& p);
void knn_local_permutations(const KnnLocalPermutations& p);

}  // namespace echo_ext
