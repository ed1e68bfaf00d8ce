// The encoders' part of compare_isas on its own: small enough to be built with sanitizers by every test run.
#include "compare_formats.h"

int main() {
  ivlite::Report report{"any", "encoders"};
  ivlite::test_encoders(report);
  return report.bad > 0;
}
