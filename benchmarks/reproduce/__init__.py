"""The comparison of methods: zero-filled, l1-wavelet, U-Net, RIM and i-RIMs."""
