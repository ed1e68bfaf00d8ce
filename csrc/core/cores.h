// How many threads there are when nobody says.
#pragma once

namespace ivlite {

// One thread per physical core that this process may use: the affinity mask and the control groups' quota count.
int default_threads();

// The number that IVLITE_NUM_THREADS gives, or default_threads() where it is unset or empty. Throws std::invalid_argument.
int wanted_threads();

}  // namespace ivlite
