# Sourced by scripts: puts the lines of settings.env (or $LEGO_SETTINGS) into the environment, unless
# they are there. egogen/settings.py does the same for Python.
while IFS='=' read -r lego_name lego_value || [ -n "$lego_name" ]; do
  lego_name=${lego_name#export }
  [[ $lego_name =~ ^LEGO_[A-Z]+$ ]] || continue
  [ -z "${!lego_name:-}" ] || continue
  lego_value=${lego_value%"${lego_value##*[![:space:]]}"}
  lego_value=${lego_value#[\"\']} lego_value=${lego_value%[\"\']}
  export "$lego_name=$lego_value"
done < "${LEGO_SETTINGS:-$(dirname "${BASH_SOURCE[0]}")/../settings.env}"
unset lego_name lego_value
