"""An app as Flower's users write it, for `benchmarks.flower`: scikit-learn's digits, a tenth of them on each device."""
