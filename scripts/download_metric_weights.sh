#!/usr/bin/env bash
# Fetch the weights of the metrics into one flat folder (default: metrics/weights).
#
#   bash scripts/download_metric_weights.sh [FOLDER]
#
# Files that are there are kept; a file appears under its name only when it is whole. The two EgoVLP
# files have no address of their own that lasts: give one in EGOVLP_URL (egovlp.pth, for Ego4D) and
# EPIC_MIR_PLUS_URL (epic_mir_plus.pth, for Epic-Kitchens), or put the files there by hand. They come
# from https://github.com/showlab/EgoVLP. HF_MIRROR replaces https://huggingface.co.
set -euo pipefail

folder="${1:-$(cd "$(dirname "$0")/.." && pwd)/metrics/weights}"
hub="${HF_MIRROR:-https://huggingface.co}"
failed=0

# get NAME URL [SHA256 or its first digits]
get() {
    local name="$1" url="$2" digest="${3:-}" target="$folder/$1" part
    if [ -s "$target" ]; then
        echo "kept:    $name"
        return 0
    fi
    mkdir -p "$(dirname "$target")"
    part="$(dirname "$target")/.$(basename "$target").part"
    echo "fetch:   $name from $url"
    if ! curl --fail --location --retry 3 --continue-at - --progress-bar --output "$part" "$url"; then
        echo "error: $name: download of $url failed; run the same command again to continue" >&2
        failed=1
        return 0
    fi
    if [ -n "$digest" ] && [[ "$(sha256sum "$part")" != "$digest"* ]]; then
        rm -f "$part"
        echo "error: $name: not the expected file (sha256 does not begin with $digest)" >&2
        failed=1
        return 0
    fi
    mv "$part" "$target"
}

# get_given NAME VARIABLE: the address comes from the user
get_given() {
    if [ -s "$folder/$1" ] || [ -n "${!2:-}" ]; then
        get "$1" "${!2:-}"
    else
        echo "error: $1: set $2 to its address, or put the file into $folder" >&2
        failed=1
    fi
}

command -v curl >/dev/null || { echo "error: curl is missing, install it first" >&2; exit 2; }
mkdir -p "$folder"

# FID
get pt_inception-2015-12-05-6726825d.pth \
    https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth \
    6726825d
# LPIPS backbones
get squeezenet1_1-b8a52dc0.pth https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth b8a52dc0
get vgg16-397923af.pth https://download.pytorch.org/models/vgg16-397923af.pth 397923af
get alexnet-owt-7be5be79.pth https://download.pytorch.org/models/alexnet-owt-7be5be79.pth 7be5be79
# CLIP
clip=b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836
get ViT-L-14.pt "https://openaipublic.azureedge.net/clip/models/$clip/ViT-L-14.pt" "$clip"
# EgoVLP, EgoVLP+
get_given egovlp.pth EGOVLP_URL
get_given epic_mir_plus.pth EPIC_MIR_PLUS_URL
# BLIP captions and the tokenizers of the text similarity
blip=https://storage.googleapis.com/sfr-vision-language-research/BLIP/models
get model_base_caption_capfilt_large.pth "$blip/model_base_caption_capfilt_large.pth"
get model_large_caption.pth "$blip/model_large_caption.pth"
for name in distilbert-base-uncased bert-base-uncased; do
    for file in config.json tokenizer_config.json tokenizer.json vocab.txt; do
        get "$name/$file" "$hub/$name/resolve/main/$file"
    done
done

[ "$failed" = 0 ] || { echo "some files are missing, see above" >&2; exit 1; }
echo "all weights are in $folder"
